"""What people read: tables, live display."""
