"""The database, its migrations and tenant transactions, and the blobs; knows not what rows mean."""
