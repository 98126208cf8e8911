"""One trial on several ranks: `team` is what a trial asks of them, `join` makes one.

| module | what ranks share |
|---|---|
| `team` | nothing: one rank |
| `mesh` | everything that a mesh of ranks can share, in products |
| `replicas` | sequences: DDP, ZeRO-1, -2 and -3 |
| `tensor` | matrices |
| `pipeline` | blocks |
| `context` | sequences, each of them in parts |
| `server` | parameters, which are with ranks of their own |
| `group` | how the processes of a trial are made, watched and ended |
"""
