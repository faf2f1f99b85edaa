"""What verl loads with the model (`model.external_lib`, one module) in the processes that train it: the fused forward's
correction, the merged weights of LoRA, the policy losses, and the settings of a resumed run's optimizer."""

import s3_agent.agl.fused_head
import s3_agent.agl.lora_exchange
import s3_agent.agl.losses
import s3_agent.agl.resumed_optimizer  # noqa: F401
