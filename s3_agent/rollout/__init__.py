"""From a claimed rollout to its reported reward."""
