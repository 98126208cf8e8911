"""What alembic runs for every command: migrate on the connection that it was handed."""

from __future__ import annotations

from alembic import context

from autotune.storage.migrate import VERSION_TABLE
from autotune.storage.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
