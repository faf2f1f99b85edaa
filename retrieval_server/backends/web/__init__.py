"""Web search behind the retriever's contract: live, recorded, or replayed without the web."""
