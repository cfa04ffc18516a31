"""How the tables came to be: Alembic scripts, applied by `Store.migrate`. Append only."""
