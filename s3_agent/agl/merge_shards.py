"""`python -m s3_agent.agl.merge_shards SHARDS TARGET`: verl's merger, which also merges LoRA's adapters.

It writes a Hugging Face folder in bfloat16 from the shards of a checkpoint. verl's own merger writes the adapters into
`lora_adapter`, and the weights without them; here the weights contain them as well.
"""

import sys
from pathlib import Path

import torch
from verl.model_merger.base_model_merger import ModelMergerConfig
from verl.model_merger.fsdp_model_merger import FSDPModelMerger

from s3_agent.agl.lora_weights import adapters_of, with_adapter


class Merger(FSDPModelMerger):
    """verl's merger; without adapters it does nothing else."""

    def save_lora_adapter(self, state_dict: dict[str, torch.Tensor]) -> str | None:
        """Add the adapters to the weights, one at a time, then let verl write them into their folder."""
        if adapters := adapters_of(state_dict):
            told = self._load_lora_train_meta()
            if not told or not {"r", "lora_alpha"} <= told.keys():
                raise ValueError(f"{self.config.local_dir} has no lora_train_meta.json: the checkpoint was cut short")
            scale = float(str(told["lora_alpha"])) / float(str(told["r"]))
            for name, (a, b) in adapters.items():
                state_dict[name] = with_adapter(state_dict[name], a, b, scale)
        return super().save_lora_adapter(state_dict)


def main(shards: str, target: str) -> None:
    """Merge. Raises whatever verl raises."""
    Path(target).mkdir(parents=True, exist_ok=True)
    config = ModelMergerConfig(
        operation="merge",
        backend="fsdp",
        local_dir=shards,
        target_dir=target,
        hf_model_config_path=str(Path(shards) / "huggingface"),
    )
    merger = Merger(config)
    merger.merge_and_save()
    merger.cleanup()


if __name__ == "__main__":
    main(*sys.argv[1:])
