"""The study database: one writer, typed tables, views for SQL, and runs as users hold them.

Importing this package costs nothing: SQLAlchemy comes with `store` and `reader`, alembic with an
upgrade, and `query` needs neither on SQLite.
"""
