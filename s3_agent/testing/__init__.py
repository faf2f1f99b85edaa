"""Fakes that replace a policy, a generator, a retriever or the Hugging Face hub in tests."""
