"""Fakes that stand for a policy, a generator, a retriever or the Hugging Face hub in tests."""
