"""What verl loads with the model (`model.external_lib`, one module) in the processes that train it: the fused forward's
correction, and the policy losses."""

import s3_agent.agl.fused_head
import s3_agent.agl.losses  # noqa: F401
