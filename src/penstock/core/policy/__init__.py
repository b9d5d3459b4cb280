"""One module a question: admit, order, limit, batch, retry."""
