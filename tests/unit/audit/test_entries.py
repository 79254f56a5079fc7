"""The bytes of an entry: JSON with sorted names and no spaces, the same whoever writes it."""

import hashlib
import json

from hypothesis import given
from hypothesis import strategies as st

from fakes.audit import event
from fakes.core import ACME, tenant_caller
from modelkeep_platform.audit.entries import SALT_BYTES, entry_body, leaf_data, personal_fields
from modelkeep_platform.core.events import Facts

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
FACTS = st.dictionaries(TEXT, TEXT | st.booleans() | st.integers(-(2**63), 2**63 - 1), max_size=6)


def written(found: object) -> bytes:
    return json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@given(FACTS, FACTS, st.binary(max_size=40))
def test_an_entry_has_one_spelling(facts: Facts, personal: Facts, sealed: bytes) -> None:
    happened = event(facts=facts, personal=personal, actor=tenant_caller(ACME, name="ana"))
    body = entry_body(happened, entry_id="log_1", log=ACME, created_at=7, sealed_personal=sealed)
    found = json.loads(body)
    assert found["facts"] == facts
    assert body == written(found)
    names = personal_fields(happened)
    assert json.loads(names) == {**personal, "principal": tenant_caller(ACME, name="ana").principal, "name": "ana"}
    assert names == written(json.loads(names))


def test_a_leaf_commits_to_salt_and_entry() -> None:
    salt, body = bytes(range(SALT_BYTES)), b'{"v":1}'
    assert leaf_data(salt, body) == b"\x01" + hashlib.sha256(salt + body).digest()
    assert leaf_data(bytes(SALT_BYTES), body) != leaf_data(salt, body)
