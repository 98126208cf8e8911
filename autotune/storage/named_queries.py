"""Queries that are asked often, by name: `autotune query @oom-by-knob`.

The table is the cookbook: every query is one SELECT over the views of `views.py` in SQL that
SQLite and PostgreSQL both read, and a place to start one's own from. All are run by a test, and
timed over a hundred thousand trials by `tests/benchmarks/queries.py`. Where a few trials meet what
was recorded of each, a cross join makes SQLite take the trials first; it would else read all knobs
of all trials in the order of an index. A new best score after the first hundred trials has to beat
those, which leaves few to be compared one by one. Where the front is sorted in a part of its own,
SQLite finds it by its index before it groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import dedent

from autotune.core.errors import UnknownName

SIGN = "@"
"""Stands before the name of a query where SQL could stand."""


@dataclass(frozen=True, slots=True)
class NamedQuery:
    """A query with a name, the question that it answers, and its SQL."""

    name: str
    question: str
    sql: str


def _query(name: str, question: str, sql: str) -> NamedQuery:
    return NamedQuery(name, question, dedent(sql).strip())


QUERIES: tuple[NamedQuery, ...] = (
    _query(
        "front",
        "what is the trade-off, from the least memory on?",
        """
        select trial, score, stderr, peak_gib, throughput, differs
        from front
        order by run, peak_gib
        """,
    ),
    _query(
        "near-best",
        "which trials come within 1 % of the best score, the least memory first?",
        """
        select t.trial, t.score, t.stderr, t.peak_gib, t.throughput, t.differs
        from (
            select f.run,
                   case when r.maximize then max(f.score) - 0.01 * abs(max(f.score))
                        else min(f.score) end as low,
                   case when r.maximize then max(f.score)
                        else min(f.score) + 0.01 * abs(min(f.score)) end as high
            from front f
            join runs r on r.name = f.run
            group by f.run, r.maximize
        ) best
        cross join trials t
        where t.run = best.run and t.feasible and t.score between best.low and best.high
        order by t.run, t.peak_gib
        limit 20
        """,
    ),
    _query(
        "outcomes",
        "how did trials end, and how much time did that take?",
        """
        select status, count(*) as trials, sum(seconds) / 60 as minutes
        from trials
        group by status
        order by trials desc
        """,
    ),
    _query(
        "failures",
        "why did trials not complete, and which one shows it?",
        """
        select failure, count(*) as trials, min(trial) as example
        from trials
        where status not in ('completed', 'running')
        group by failure
        order by trials desc
        limit 20
        """,
    ),
    _query(
        "oom-by-knob",
        "which values did trials have that ran out of memory?",
        """
        select k.knob, k.value, count(*) as trials, avg(t.needed_gib) as mean_needed_gib
        from trials t
        cross join knobs k
        where k.run = t.run and k.trial = t.trial and t.status = 'out-of-memory'
        group by k.knob, k.value
        order by trials desc, k.knob, k.value
        """,
    ),
    _query(
        "almost-fit",
        "which trials ran out of memory or were refused, and needed least?",
        """
        select t.trial, t.status, t.needed_gib, t.needed_gib - r.limit_gib as over_gib, t.differs
        from trials t
        join runs r on r.name = t.run
        where t.status in ('out-of-memory', 'refused') and t.needed_gib is not null
        order by t.needed_gib
        limit 20
        """,
    ),
    _query(
        "knobs-of-front",
        "which values do the trials on the front have, and how often?",
        """
        select k.knob, k.value, count(*) as trials, min(f.peak_gib) as least_gib
        from front f
        cross join knobs k
        where k.run = f.run and k.trial = f.trial
        group by k.knob, k.value
        order by k.knob, trials desc
        """,
    ),
    _query(
        "anatomy-of-front",
        "where does the memory of the front go?",
        """
        select f.trial, f.peak_gib,
               sum(case when a.part = 'weights' then a.gib else 0 end) as weights,
               sum(case when a.part = 'gradients' then a.gib else 0 end) as gradients,
               sum(case when a.part = 'optimizer' then a.gib else 0 end) as optimizer,
               sum(case when a.part = 'activations' then a.gib else 0 end) as activations,
               sum(case when a.part in ('logits', 'inputs', 'other') then a.gib else 0 end) as rest
        from (select run, trial, peak_gib from front order by run, peak_gib) f
        cross join anatomy a
        where a.run = f.run and a.trial = f.trial
        group by f.run, f.trial, f.peak_gib
        order by f.run, f.peak_gib
        """,
    ),
    _query(
        "phases-of-front",
        "in which phase does the memory of the front peak?",
        """
        select f.trial, m.kind,
               max(case when m.phase = 'load' then m.gib end) as load,
               max(case when m.phase = 'first' then m.gib end) as first,
               max(case when m.phase = 'steady' then m.gib end) as steady,
               max(case when m.phase = 'evaluate' then m.gib end) as evaluate
        from front f
        cross join memory m
        where m.run = f.run and m.trial = f.trial
        group by f.run, f.trial, f.peak_gib, m.kind
        order by f.run, f.peak_gib, m.kind
        """,
    ),
    _query(
        "predictions",
        "where was the predicted peak farthest from the measured one?",
        """
        select trial, predicted_gib, peak_gib,
               100 * (predicted_gib / peak_gib - 1) as error_percent, differs
        from trials
        where status = 'completed' and predicted_gib is not null and peak_gib is not null
        order by abs(predicted_gib / peak_gib - 1) desc
        limit 20
        """,
    ),
    _query(
        "fastest",
        "which trials that fit train fastest?",
        """
        select trial, throughput, score, peak_gib, differs
        from trials
        where feasible and throughput > 0
        order by throughput desc
        limit 20
        """,
    ),
    _query(
        "slowest",
        "which trials took longest?",
        """
        select trial, status, seconds, throughput, differs
        from trials
        where seconds is not null
        order by seconds desc
        limit 20
        """,
    ),
    _query(
        "progress",
        "when did a trial set a new best score?",
        """
        select t.trial, t.score, t.peak_gib, t.differs
        from (
            select run, trial, loss,
                   min(loss) over (
                       partition by run order by trial
                       rows between unbounded preceding and 1 preceding
                   ) as before
            from (
                select s.run, s.trial, case when r.maximize then -s.score else s.score end as loss
                from runs r
                left join (
                    select run, min(score) as low, max(score) as high
                    from trials
                    where trial < 100 and feasible
                    group by run
                ) early on early.run = r.name
                cross join trials s
                where s.run = r.name and s.feasible
                  and (s.trial < 100 or early.low is null
                       or case when r.maximize then s.score > early.high
                               else s.score < early.low end)
            ) scored
            where loss is not null
        ) compared
        cross join trials t
        where (before is null or loss < before) and t.run = compared.run
          and t.trial = compared.trial
        order by t.run, t.trial
        """,
    ),
    _query(
        "budget-use",
        "how much of the budget do completed trials use, in tenths?",
        """
        select tenth, count(*) as trials, avg(score) as mean_score
        from (
            select cast(10 * t.footprint_gib / r.budget_gib as integer) as tenth, t.score
            from trials t
            join runs r on r.name = t.run
            where t.status = 'completed' and t.footprint_gib is not null
        ) used
        group by tenth
        order by tenth
        """,
    ),
    _query(
        "origins",
        "who proposed the trials that came to something?",
        """
        select origin, count(*) as trials,
               sum(case when feasible then 1 else 0 end) as feasible,
               sum(case when on_front then 1 else 0 end) as on_front
        from trials
        group by origin
        order by trials desc
        """,
    ),
)
"""Every named query, in the order in which they are listed."""


def find_query(name: str) -> NamedQuery:
    """Return a query by its name, with or without the sign before it.

    Raises:
        UnknownName: If there is none of that name.
    """
    bare = name.strip().removeprefix(SIGN)
    for query in QUERIES:
        if query.name == bare:
            return query
    raise UnknownName.among("query", bare, [query.name for query in QUERIES])
