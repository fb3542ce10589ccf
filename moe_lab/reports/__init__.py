"""Pages and pictures of results: whatever draws or writes HTML reads results by their schema, and runs no model."""
