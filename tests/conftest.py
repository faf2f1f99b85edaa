"""No property test is bound to the clock: other programs may keep the machine busy."""

from hypothesis import settings

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
