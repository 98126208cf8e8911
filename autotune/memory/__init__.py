"""Memory known before it is spent: rehearsals of trials, and what follows from them."""
