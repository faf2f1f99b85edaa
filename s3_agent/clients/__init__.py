"""Clients of the services that a rollout talks to: policy, retriever, generator, gateway."""
