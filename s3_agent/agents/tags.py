from s3_agent.tags import *  # noqa
