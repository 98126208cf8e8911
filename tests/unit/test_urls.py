"""No password of a database's URL is in what is shown, however the URL is written."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import OperationalError

from autotune.core.errors import AutotuneError
from autotune.storage.engine import connect
from autotune.storage.faults import storage_error
from autotune.storage.urls import check_server_url, masked, scrubbed

MARK = "Zq7"
SECRETS = st.text(min_size=0, max_size=12).map(lambda text: f"{MARK}{text}{MARK}")
SIGNS = st.text(alphabet=":/@?#&=%+ '\"\\", max_size=8).map(lambda text: f"{MARK}{text}{MARK}")
DIALECTS = st.sampled_from(["postgresql", "postgresql+psycopg", "mysql+pymysql", "nosuch+x"])
PLACES = st.sampled_from(["{}://me:{}@host/db", "{}://me:{}@host:5432/db?sslmode=require",
                          "{}://:{}@/db", "{}://host/db?user=me&password={}",
                          "{}://me@host/db?sslpassword={}&x=1"])  # fmt: skip


@settings(deadline=None)
@given(DIALECTS, PLACES, SECRETS | SIGNS)
def test_an_escaped_password_is_never_shown(dialect: str, place: str, secret: str) -> None:
    url = place.format(dialect, quote(secret, safe=""))
    shown = masked(url)
    assert MARK not in shown
    assert "***" in shown
    assert "db" in shown


@settings(deadline=None)
@given(DIALECTS, SECRETS | SIGNS)
def test_a_password_that_is_not_escaped_is_never_shown(dialect: str, secret: str) -> None:
    url = f"{dialect}://me:{secret}@host/db"
    assert MARK not in masked(url)
    told = complaint(url)
    assert MARK not in told
    assert told or secret.count("@") == 0


def complaint(url: str) -> str:
    """Return what is said of a URL that is refused, or whose dialect or driver is missing."""
    try:
        check_server_url(url)
        connect(url, "read").dispose()
    except AutotuneError as error:
        return f"{error.to_json()} {error.__cause__}"
    return ""


@settings(deadline=None)
@given(PLACES, SECRETS)
def test_what_a_driver_complains_of_is_scrubbed(place: str, secret: str) -> None:
    url = place.format("postgresql+psycopg", quote(secret, safe=""))
    for text in (f"cannot connect to {url}: refused", f"dsn: host=h password={quote(secret)} x=1"):
        assert MARK not in scrubbed(text)
        error = storage_error(OperationalError("select 1", {}, Exception(text)), url)
        assert MARK not in str(error.to_json())


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///results/mine/study.db",
        "sqlite:////tmp/a:b@c/study.db",
        "results/mine/study.db",
        "/tmp/a:b@c",
        "postgresql+psycopg://me@host:5432/db",
        "postgresql+psycopg:///db?host=/var/run/postgresql",
    ],
)
def test_what_has_no_password_is_shown_as_it_is(text: str) -> None:
    assert masked(text) == text


def test_user_and_host_stay() -> None:
    assert masked("postgresql+psycopg://me:x@host:1/db") == "postgresql+psycopg://me:***@host:1/db"
    assert masked("mysql://host/db?passwd=x&a=1") == "mysql://host/db?passwd=***&a=1"
