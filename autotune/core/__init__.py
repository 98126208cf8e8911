"""What autotune speaks of, in pure Python: knows no torch, optuna, ray or SQLAlchemy."""
