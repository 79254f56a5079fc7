"""Attempts on policies: the lines *Policies* of the design's list of attacks.

First the room alone: the refusal's code, that nothing changed, what the log was told; stale processes and damaged rows,
which take a second process and a hand in the database. Then the same texts sent to a running platform by an
administrator: status and code, nothing changed, and the entry in the caller's log.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from fakes.access import BY, DATASET, FOREIGN, MODEL, AccessRoom, quick_database, refused
from fakes.audit import CommittedLog
from fakes.core import ACME, GLOBEX, FakeClock, FakeRecorder, tenant_caller
from isolation.routes import code_of, seen
from modelkeep_platform.access.service import OWNER_FORBIDS
from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.callers import Caller, Role
from modelkeep_platform.core.errors import CallerError, ForbiddenError, IntegrityError, NotFoundError, UnavailableError
from modelkeep_platform.core.events import Event, Outcome
from modelkeep_platform.core.ids import TenantId
from modelkeep_platform.core.limits import MAX_POLICY_BYTES
from modelkeep_platform.core.refs import Kind, ResourceRef, collection
from modelkeep_platform.storage.tables.access import active_policies, grants, policy_versions
from modelkeep_platform.storage.tables.identity import tenants
from services.evidence import Evidence
from services.house import GRAPH, WEIGHTS, House

ADMIN = tenant_caller(ACME)
DEVELOPER = tenant_caller(ACME, Role.DEVELOPER, name="dev")
PARTNER = tenant_caller(GLOBEX, Role.DEVELOPER, name="partner")
PERMIT = "permit (principal, action, resource);"
HEAD = "permit (principal, action, resource) when { "


@pytest.fixture
def room(tmp_path: Path, clock: FakeClock, recorder: FakeRecorder) -> Iterator[AccessRoom]:
    database = quick_database(tmp_path / "attacked.db")
    yield AccessRoom(database, clock, recorder)
    database.close()


def refuse(room: AccessRoom, caller: Caller, action: Action, ref: ResourceRef, **facts: Any) -> CallerError:
    """Check that a call is refused, recorded and without effect; return the error."""
    before, count = room.state(), len(room.recorder.events)
    with pytest.raises(CallerError) as raised:
        room.authorizer.require(caller, action, ref, facts)
    assert room.state() == before
    (event,) = room.recorder.events[count:]
    assert refused(event, caller)[0] == action
    return raised.value


# --- texts --------------------------------------------------------------------------------------

TEXTS = {
    "no-policy": ("{}", "invalid_policy"),
    "syntax": ("permit (principal, action, resource) when {", "invalid_policy"),
    "type": (HEAD + 'context.version == "1" };', "invalid_policy"),
    "not-a-condition": (HEAD + "context.version };", "invalid_policy"),
    "unknown-action": ('permit (principal, action == Modelkeep::Action::"model:steal", resource);', "invalid_policy"),
    "action-of-no-namespace": ('permit (principal, action == Action::"model:read", resource);', "invalid_policy"),
    "unknown-attribute": (HEAD + "principal.is_root };", "invalid_policy"),
    "unknown-context": (HEAD + 'context.token == "x" };', "invalid_policy"),
    "unknown-type": ("permit (principal is Modelkeep::Root, action, resource);", "invalid_policy"),
    "unknown-function": (HEAD + 'system("id") };', "invalid_policy"),
    "attribute-by-has-alone": (HEAD + "principal has root && principal.root };" + HEAD + "x };", "invalid_policy"),
    "operator": (
        'permit (principal is Modelkeep::Operator, action == Modelkeep::Action::"model:read", resource);',
        "invalid_policy",
    ),
    "template": ("permit (principal == ?principal, action, resource);", "invalid_policy"),
    "template-of-resources": ("permit (principal, action, resource in ?resource);", "invalid_policy"),
    "guards-id": ('@id("guard-tenant") ' + PERMIT, "invalid_policy"),
    "grants-id": ('@id("grant") ' + PERMIT, "invalid_policy"),
    "markup-id": ('@id("<script>") ' + PERMIT, "invalid_policy"),
    "control-in-id": ('@id("\x1b[31m") ' + PERMIT, "invalid_policy"),
    "reordered": ("// \u202etimrep\n" + PERMIT, "invalid_policy"),
    "nul": ("// \0\n" + PERMIT, "invalid_policy"),
    "surrogate": ("// \ud800\n" + PERMIT, "invalid_policy"),
    "bytes": ("// " + "x" * MAX_POLICY_BYTES, "too_large"),
    "bytes-of-characters": ("// " + "é" * (MAX_POLICY_BYTES // 2), "too_large"),
    "number": (HEAD + "context.version == " + "9" * 60_000 + " };", "invalid_policy"),
    "policies": (PERMIT * 201, "invalid_policy"),
    "brackets": ("(" * 65_000, "invalid_policy"),
    "closed-brackets": (HEAD + "(" * 5_000 + "true" + ")" * 5_000 + " };", "invalid_policy"),
    "sets": (HEAD + "[" * 5_000 + "]" * 5_000 + " };", "invalid_policy"),
    "records": (HEAD + "{a:" * 5_000 + "1" + "}" * 5_000 + " == 1 };", "invalid_policy"),
    "conditionals": (HEAD + "if true then " * 2_000 + "true" + " else true" * 2_000 + " };", "invalid_policy"),
    "negations": (HEAD + "!" * 60_000 + "true };", "invalid_policy"),
    "minus": (HEAD + "-" * 60_000 + "1 == 1 };", "invalid_policy"),
    "selections": (HEAD + "principal" + ".a" * 30_000 + " };", "invalid_policy"),
    "chain": (HEAD + " && ".join(["true"] * 8_000) + " };", "invalid_policy"),
    "has-chain": (HEAD + "principal has " + ".".join("a" * 20_000) + " };", "invalid_policy"),
    "annotations": ('@a("x") ' * 8_000 + PERMIT, "invalid_policy"),
    "hidden-by-return": ("// \r" + "(" * 5_000, "invalid_policy"),
    "quote": (HEAD + '"' * 60_001 + " };", "invalid_policy"),
}


@pytest.mark.parametrize(("text", "code"), TEXTS.values(), ids=TEXTS)
def test_a_bad_text_is_refused_with_its_place_and_changes_nothing(room: AccessRoom, text: str, code: str) -> None:
    before = room.state()
    for call in (room.policies.publish, room.policies.check):
        with pytest.raises(CallerError) as raised:
            call(ADMIN, text)
        assert raised.value.error_code == code
        if code == "invalid_policy":
            problems: Any = raised.value.details["errors"]
            assert all(at["line"] >= 1 and at["column"] >= 1 for at in problems)
        assert len(raised.value.message) < 600
    assert room.state() == before
    assert room.recorder.events == []


def test_the_largest_texts_that_pass_are_decided_by(room: AccessRoom) -> None:
    wide = HEAD + "[" + ",".join(f'"n{n}"' for n in range(7_000)) + "].contains(context.name) };"
    pattern = HEAD + 'context.name like "' + "*a" * 30_000 + '" };'
    many = "".join(f'{HEAD}context.name == "a{n}" && context.version > {n} }};' for n in range(200))
    for text in (wide, pattern, many):
        room.policies.publish(ADMIN, text)
        decision = room.authorizer.require(DEVELOPER, Action.MODEL_READ, MODEL, {"name": "b" * 64})
        assert [side.policies for side in decision.sides] == [("developer-builds",)]


# --- the guard ----------------------------------------------------------------------------------

LIFTING: dict[str, tuple[str, set[str]]] = {
    "everything": (PERMIT, {"model", "dataset"}),
    "context": (HEAD + "context.cross_tenant };", set()),
    "tenant": (HEAD + 'resource.tenant == "OWNER" };', {"model", "dataset"}),
    "another-tenant": (HEAD + "!(principal.tenant == resource.tenant) };", set()),
    "granted": (HEAD + "resource.granted.contains(principal.tenant) || true };", {"model", "dataset"}),
    "model": ('permit (principal, action, resource == Modelkeep::Model::"MODEL");', {"model"}),
    "dataset": ('permit (principal, action, resource == Modelkeep::Dataset::"DATASET");', {"dataset"}),
}
"""Texts that speak of what another tenant owns, and which of them opens what at home: so it does mean what is there."""


def lifting(text: str, owner: str, model: str, dataset: str) -> str:
    """Return a text with the ids that the platform gave."""
    return text.replace("OWNER", owner).replace("MODEL", model).replace("DATASET", dataset)


@pytest.mark.parametrize("text", [text for text, _ in LIFTING.values()], ids=LIFTING)
@pytest.mark.parametrize(("owner", "model"), [(ACME, MODEL), (GLOBEX, FOREIGN)], ids=["acmes", "globexs"])
def test_no_policy_of_either_side_lifts_the_guard(
    room: AccessRoom, text: str, owner: TenantId, model: ResourceRef
) -> None:
    for caller in (ADMIN, tenant_caller(GLOBEX)):
        room.policies.publish(caller, lifting(text, owner, str(model.object_id), str(DATASET.object_id)))
    assert refuse(room, ADMIN, Action.MODEL_READ, FOREIGN).error_code == "not_found"
    assert refuse(room, tenant_caller(GLOBEX), Action.MODEL_READ, MODEL).error_code == "not_found"
    assert refuse(room, tenant_caller(GLOBEX), Action.DATASET_READ, DATASET).error_code == "not_found"


def test_no_policy_gives_a_tenant_what_is_the_operators(room: AccessRoom) -> None:
    room.policies.publish(ADMIN, PERMIT)
    for action in (Action.TENANT_CREATE, Action.TENANT_SUSPEND, Action.ISSUER_ROTATE):
        error = refuse(room, ADMIN, action, collection(ACME, Kind.PLATFORM))
        assert error.details["policies"] == ["guard-operators"]


def test_an_owner_forbids_what_it_granted_and_a_caller_what_it_was_granted(room: AccessRoom) -> None:
    room.put_grant(MODEL, GLOBEX, ["model:predict"])
    room.authorizer.require(PARTNER, Action.MODEL_PREDICT, MODEL)
    text = '@id("stay-home") forbid (principal, action, resource) when { context.cross_tenant };'
    room.policies.publish(ADMIN, text)
    refused = refuse(room, PARTNER, Action.MODEL_PREDICT, MODEL)
    assert refused.details == {"action": "model:predict", "reasons": [OWNER_FORBIDS], "policies": []}
    assert "stay-home" not in refused.message
    room.policies.publish(ADMIN, "")
    room.policies.publish(tenant_caller(GLOBEX), text)
    assert refuse(room, PARTNER, Action.MODEL_PREDICT, MODEL).details["policies"] == ["stay-home"]


def test_neither_log_tells_what_the_other_tenants_policies_are_called(tmp_path: Path, clock: FakeClock) -> None:
    database = quick_database(tmp_path / "log.db")
    log = CommittedLog(database, clock)
    room = AccessRoom(database, clock, log)  # type: ignore[arg-type]
    room.put_grant(MODEL, GLOBEX, ["model:predict"])
    room.put_policy(ACME, '@id("acmes-secret") permit (principal, action, resource);')
    room.put_policy(GLOBEX, "")
    room.put_policy(GLOBEX, '@id("globexs-secret") permit (principal, action, resource);')
    decision = room.authorizer.require(PARTNER, Action.MODEL_PREDICT, MODEL)
    done = Event(tenant=ACME, action=decision.action, outcome=Outcome.DONE, actor=PARTNER, ref=MODEL, decision=decision)
    with database.tenant(ACME, by=decision) as tx:
        log.record(tx, done)
    room.put_policy(ACME, '@id("acmes-secret") forbid (principal, action, resource) when { context.cross_tenant };')
    with pytest.raises(ForbiddenError):
        room.authorizer.require(PARTNER, Action.MODEL_PREDICT, MODEL)
    entries = log.entries("model:predict")
    assert [(entry["tenant"], entry["outcome"], entry["policies"], entry["policy_version"]) for entry in entries] == [
        (ACME, "done", ["grant", "acmes-secret"], 2),
        (GLOBEX, "done", ["developer-builds", "globexs-secret"], 3),
        (GLOBEX, "denied", [], None),
    ]
    assert entries[2]["facts"]["reason"] == OWNER_FORBIDS
    database.close()


def test_a_row_written_behind_the_services_back_gives_no_more_than_can_be_granted(room: AccessRoom) -> None:
    room.put_grant(MODEL, GLOBEX, ["model:delete", "model:alias", "policy:publish", "grant:create"])
    for action in Action:
        assert refuse(room, tenant_caller(GLOBEX), action, MODEL).error_code == "not_found"


# --- failing policies ---------------------------------------------------------------------------

FAILING = {
    "permit": HEAD + "context.version + 9223372036854775807 < 0 };",
    "forbid": "forbid (principal, action, resource) when { context.version + 9223372036854775807 < 0 };",
    "beside-a-permit": PERMIT + HEAD + "context.version * 9223372036854775807 > 0 };",
}


@pytest.mark.parametrize("text", FAILING.values(), ids=FAILING)
def test_a_policy_that_fails_at_run_time_denies_and_is_recorded(room: AccessRoom, text: str) -> None:
    room.policies.publish(ADMIN, text)
    room.authorizer.require(DEVELOPER, Action.MODEL_READ, MODEL, {"version": 0})
    error = refuse(room, DEVELOPER, Action.MODEL_READ, MODEL, version=2)
    assert error.error_code == "forbidden"
    assert error.details["reasons"] == ["a policy failed while it was evaluated"]
    # It can still be mended.
    room.policies.publish(ADMIN, "")
    room.authorizer.require(DEVELOPER, Action.MODEL_READ, MODEL, {"version": 2})


# --- the last administrator ---------------------------------------------------------------------

LAST = {
    "all": "forbid (principal, action, resource);",
    "by-role": 'forbid (principal, action, resource) when { principal.roles.contains("tenant-admin") };',
    "by-kind": "forbid (principal is Modelkeep::User, action, resource is Modelkeep::Policy);",
    "by-name": 'forbid (principal, action, resource) when { principal.name == "app" };',
    "by-id": 'forbid (principal == Modelkeep::User::"principal-app", action, resource);',
    "by-pattern": 'forbid (principal, action, resource) when { principal.name like "a*" };',
    "all-but-a-stranger": 'forbid (principal, action, resource) unless { principal.name == "any administrator" };',
    "all-but-a-strangers-id": "forbid (principal, action, resource)"
    ' unless { principal == Modelkeep::User::"any-administrator" };',
    "all-but-myself": 'forbid (principal, action, resource) unless { principal.name == "app" };',
    "by-failing": HEAD + "context.version - 9223372036854775807 - 9 < 0 };",
}


@pytest.mark.parametrize("text", LAST.values(), ids=LAST)
def test_the_last_administrators_access_cannot_be_published_away(room: AccessRoom, text: str) -> None:
    before = room.state()
    for call in (room.policies.publish, room.policies.check):
        with pytest.raises(CallerError) as raised:
            call(ADMIN, text)
        assert raised.value.error_code == "policy_lockout"
    assert room.state() == before
    assert room.recorder.events == []
    room.policies.publish(ADMIN, "")


def test_nor_rolled_back_to(room: AccessRoom) -> None:
    version = room.put_policy(ACME, LAST["by-role"])
    room.put_policy(ACME, "")
    before = room.state()
    with pytest.raises(CallerError) as raised:
        room.policies.activate(ADMIN, version)
    assert raised.value.error_code == "policy_lockout"
    assert room.state() == before


# --- publication at once, stale processes -------------------------------------------------------


def test_publication_at_once_from_two_processes_makes_two_versions_and_one_active(room: AccessRoom) -> None:
    other = room.another()
    ready = threading.Barrier(2)
    found: list[int] = []

    def publish(process: Any, text: str) -> None:
        ready.wait()
        found.append(process.policies.publish(ADMIN, text).version)

    threads = [
        threading.Thread(target=publish, args=(process, f"// {number}")) for number, process in enumerate((room, other))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [2, 3]
    with room.database.tenant(ACME, by=BY, read_only=True) as tx:
        assert [row["version"] for row in tx.all(tx.select(active_policies))] == [3]
    assert [(event.outcome, event.facts["version"]) for event in room.recorder.events] == [
        (Outcome.DONE, 2),
        (Outcome.DONE, 3),
    ]


def test_another_process_decides_by_the_old_version_until_it_sees_the_epoch_and_then_never(room: AccessRoom) -> None:
    stale = room.another()
    stale.authorizer.require(DEVELOPER, Action.MODEL_READ, MODEL)
    room.policies.publish(ADMIN, '@id("closed") forbid (principal, action, resource is Modelkeep::Model);')
    refuse(room, DEVELOPER, Action.MODEL_READ, MODEL)
    # Within the documented window it does not know yet ...
    assert [side.policy_version for side in stale.authorizer.require(DEVELOPER, Action.MODEL_READ, MODEL).sides] == [1]
    # ... and nothing that it kept survives the moment it does.
    stale.epoch.refresh()
    with pytest.raises(ForbiddenError) as raised:
        stale.authorizer.require(DEVELOPER, Action.MODEL_READ, MODEL)
    assert raised.value.details["policies"] == ["closed"]


def test_a_process_that_cannot_read_the_epoch_decides_nothing(room: AccessRoom) -> None:
    stale = room.another()
    stale.authorizer.require(DEVELOPER, Action.MODEL_READ, MODEL)
    room.clock.advance(1.01)
    for call in (stale.authorizer.require, stale.authorizer.allows):
        with pytest.raises(UnavailableError) as raised:
            call(DEVELOPER, Action.MODEL_READ, MODEL)
        assert raised.value.error_code == "epoch_unreadable"


def test_a_revoked_grant_is_gone_for_other_processes_with_the_epoch(room: AccessRoom) -> None:
    stale = room.another()
    grant = room.grants.create(
        ADMIN, kind="model", name="m", grantee="globex", actions=["model:predict"], expires_at=None
    )
    stale.epoch.refresh()
    stale.authorizer.require(PARTNER, Action.MODEL_PREDICT, MODEL)
    room.grants.revoke(ADMIN, grant.id)
    stale.epoch.refresh()
    with pytest.raises(NotFoundError):
        stale.authorizer.require(PARTNER, Action.MODEL_PREDICT, MODEL)
    assert refused(room.recorder.events[-1], PARTNER) == ("model:predict", "not found")


# --- what was stored ----------------------------------------------------------------------------


def damages() -> Iterator[tuple[str, Any]]:
    yield "text", lambda tx: tx.change(tx.update(policy_versions).values(text=PERMIT))
    yield "digest", lambda tx: tx.change(tx.update(policy_versions).values(sha256="0" * 64))
    yield "version", lambda tx: tx.change(tx.delete(policy_versions))
    yield "pointer", lambda tx: tx.change(tx.delete(active_policies))
    yield "pointer-beyond", lambda tx: tx.change(tx.update(active_policies).values(version=99))


@pytest.mark.parametrize("damage", [damage for _, damage in damages()], ids=[name for name, _ in damages()])
def test_a_stored_policy_that_was_changed_or_is_missing_denies_everything(room: AccessRoom, damage: Any) -> None:
    room.put_grant(MODEL, GLOBEX, ["model:predict"])
    with room.database.tenant(ACME, by=BY) as tx:
        damage(tx)
        tx.bump_epoch()
    room.epoch.refresh()
    for caller, action in (
        (ADMIN, Action.MODEL_READ),
        (ADMIN, Action.POLICY_PUBLISH),
        (PARTNER, Action.MODEL_PREDICT),
    ):
        error = refuse(room, caller, action, MODEL if caller is PARTNER else collection(ACME, Kind.MODEL))
        failed = "a policy failed while it was evaluated"
        assert error.details["reasons"] == [OWNER_FORBIDS if caller is PARTNER else failed]
    # Other tenants are not touched.
    room.authorizer.require(PARTNER, Action.MODEL_READ, FOREIGN)


def test_a_changed_version_cannot_be_made_active(room: AccessRoom) -> None:
    room.put_policy(ACME, PERMIT)
    room.put_policy(ACME, "")
    with room.database.tenant(ACME, by=BY) as tx:
        tx.change(tx.update(policy_versions).where(policy_versions.c.version == 2).values(text=PERMIT + " // more"))
    before = room.state()
    with pytest.raises(IntegrityError) as raised:
        room.policies.activate(ADMIN, 2)
    assert raised.value.error_code == "integrity"
    assert room.state() == before


@pytest.mark.parametrize("stored", ["", "null", "{", '{"model:read": true}', '"model:read"', "[[[]]]"], ids=repr)
def test_a_damaged_grant_gives_nothing(room: AccessRoom, stored: str) -> None:
    room.put_grant(MODEL, GLOBEX, stored)
    assert refuse(room, PARTNER, Action.MODEL_READ, MODEL).error_code == "not_found"


def test_a_grant_moved_to_another_owner_gives_nothing(room: AccessRoom) -> None:
    room.put_grant(MODEL, GLOBEX, ["model:read"])
    with room.database.platform() as tx:
        tx.execute(sa.update(grants).values(tenant_id=GLOBEX))
        tx.bump_epoch()
    room.epoch.refresh()
    assert refuse(room, PARTNER, Action.MODEL_READ, MODEL).error_code == "not_found"


# --- a platform -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(
        Path(tmp_path_factory.mktemp("policies")),
        tenant_refusals_per_minute=1_000_000,
        principal_refusals_per_minute=1_000_000,
    )
    house.fill()
    house.acme.clients["developer"].models.upload("model", graph=GRAPH, weights=WEIGHTS)
    yield house
    house.close()


@pytest.fixture(scope="module")
def evidence(house: House) -> Evidence:
    return Evidence(house)


@pytest.fixture(scope="module")
def admin(house: House) -> Iterator[httpx.Client]:
    """Acme's administrator."""
    with house.http(house.acme.admin) as http:
        yield http


@pytest.fixture(scope="module")
def outsider(house: House) -> Iterator[httpx.Client]:
    """Globex's administrator."""
    with house.http(house.globex.admin) as http:
        yield http


@pytest.fixture
def mended(admin: httpx.Client, outsider: httpx.Client) -> Iterator[None]:
    """Give both tenants an empty policy again afterwards."""
    yield
    for http in (admin, outsider):
        assert publish(http, "").status_code == 201


def publish(http: httpx.Client, text: str, path: str = "/v1/policies") -> httpx.Response:
    """Send a text in ASCII alone: half a surrogate pair has no bytes of its own."""
    body = json.dumps({"text": text}).encode()
    return http.post(path, content=body, headers={"content-type": "application/json"})


def is_refused(
    evidence: Evidence, answer: httpx.Response, status: int, code: str, reason: str = "", tenant: str = "acme"
) -> None:
    """Check status and code, and that the refusal is one entry of the caller's log and of no other."""
    assert (answer.status_code, code_of(answer)) == (status, code), answer.text[:400]
    assert evidence.recorded(answer) == [(tenant, "denied", reason or code)]


@pytest.mark.parametrize("path", ["/v1/policies", "/v1/policies/check"])
@pytest.mark.parametrize(("text", "code"), TEXTS.values(), ids=TEXTS)
def test_a_bad_text_is_refused_over_http(
    evidence: Evidence, admin: httpx.Client, text: str, code: str, path: str
) -> None:
    with evidence.nothing_changes():
        answer = publish(admin, text, path)
    if text == TEXTS["surrogate"][0]:
        code = "invalid_json"
    is_refused(evidence, answer, {"too_large": 413, "invalid_json": 400}.get(code, 422), code)
    assert len(answer.content) < 20_000


def test_a_body_far_over_the_limit_is_not_read(evidence: Evidence, admin: httpx.Client) -> None:
    with evidence.nothing_changes():
        answer = publish(admin, "// " + "x" * (3 * MAX_POLICY_BYTES))
    is_refused(evidence, answer, 413, "too_large")


@pytest.mark.parametrize("role", ["developer", "analyst", "auditor"])
def test_who_may_not_publish_changes_nothing(house: House, evidence: Evidence, role: str) -> None:
    with house.http(house.acme.role(role)) as http, evidence.nothing_changes():
        answers = [publish(http, PERMIT), http.post("/v1/policies/1/activate")]
    for answer, action in zip(answers, ("policy:publish", "policy:activate"), strict=True):
        is_refused(evidence, answer, 403, "forbidden", f"no policy permits `{action}` to the roles `{role}`")


@pytest.mark.parametrize(("text", "home"), LIFTING.values(), ids=LIFTING)
@pytest.mark.usefixtures("mended")
def test_no_published_policy_lifts_the_guard_over_http(
    house: House, evidence: Evidence, admin: httpx.Client, outsider: httpx.Client, text: str, home: set[str]
) -> None:
    owner = admin.get("/v1/whoami").json()["tenant"]["id"]
    model, dataset = (admin.get(path).json()["id"] for path in ("/v1/models/model", "/v1/datasets/rows"))
    for http in (admin, outsider):
        assert publish(http, lifting(text, owner, model, dataset)).status_code == 201
    closed = {"model": "/v1/models/model/versions/1/weights", "dataset": "/v1/datasets/rows"}
    with house.http(house.acme.clients["auditor"]) as own:
        assert {what for what, path in closed.items() if own.get(path).status_code == 200} == home
    infer = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 1]}]}
    calls: tuple[tuple[str, str, Any], ...] = (
        ("GET", "/v1/models/acme~{}", None),
        ("DELETE", "/v1/models/acme~{}", None),
        ("GET", "/v1/datasets/acme~{}", None),
        ("POST", "/v2/models/acme~{}/infer", infer),
    )
    for method, path, body in calls:
        with evidence.nothing_changes():
            foreign, missing = (
                outsider.request(method, path.format(name), json=body)
                for name in ("rows" if "datasets" in path else "model", "never")
            )
        assert seen(foreign) == seen(missing)
        is_refused(evidence, foreign, 404, "not_found", "not found", tenant="globex")


@pytest.mark.usefixtures("mended")
def test_no_published_policy_gives_the_operators_work_over_http(evidence: Evidence, admin: httpx.Client) -> None:
    assert publish(admin, PERMIT).status_code == 201
    with evidence.nothing_changes():
        answers = [
            admin.post("/v1/tenants", json={"slug": "mine", "name": "Mine"}),
            admin.post("/v1/tenants/globex/suspend"),
            admin.post("/v1/issuer/rotate-key"),
        ]
    for answer in answers:
        is_refused(evidence, answer, 403, "operator_only")


@pytest.mark.parametrize("text", FAILING.values(), ids=FAILING)
@pytest.mark.usefixtures("mended")
def test_a_policy_that_fails_at_run_time_denies_over_http(
    house: House, evidence: Evidence, admin: httpx.Client, text: str
) -> None:
    assert publish(admin, text).status_code == 201
    reason = "a policy failed while it was evaluated"
    with house.http(house.acme.clients["developer"]) as http, evidence.nothing_changes():
        answers = [http.get("/v1/models/model/versions/2"), http.get("/v2/models/model/versions/2")]
        assert http.get("/v1/models/model").status_code == 200, "where it does not fail, roles decide"
    for answer in answers:
        is_refused(evidence, answer, 403, "forbidden", reason)
    assert answers[0].json()["error"]["details"]["reasons"] == [reason]
    assert publish(admin, "").status_code == 201
    with house.http(house.acme.clients["developer"]) as http:
        assert http.get("/v1/models/model/versions/2").status_code == 200


@pytest.mark.parametrize("text", LAST.values(), ids=LAST)
def test_the_last_administrators_access_cannot_be_published_away_over_http(
    evidence: Evidence, admin: httpx.Client, text: str
) -> None:
    me = admin.get("/v1/whoami").json()
    own = text.replace('"app"', f'"{me["name"]}"').replace('"principal-app"', f'"{me["principal"]}"')
    for path in ("/v1/policies", "/v1/policies/check"):
        with evidence.nothing_changes():
            answer = publish(admin, own, path)
        is_refused(evidence, answer, 422, "policy_lockout")
    assert publish(admin, "").status_code == 201


def test_nor_be_rolled_back_to_over_http(house: House, evidence: Evidence, admin: httpx.Client) -> None:
    text, version = LAST["by-role"], publish(admin, "").json()["version"] + 1
    with house.server.platform.ground.database.platform() as tx:
        owner = tx.first(sa.select(tenants).where(tenants.c.slug == "acme"))
        assert owner is not None
        tx.as_tenant(owner["id"]).insert(
            policy_versions,
            version=version,
            text=text,
            sha256=hashlib.sha256(text.encode()).hexdigest(),
            created_at=1,
            created_by="test",
        )
    with evidence.nothing_changes():
        answer = admin.post(f"/v1/policies/{version}/activate")
    is_refused(evidence, answer, 422, "policy_lockout")
    for never in (version + 1, 10**9):
        with evidence.nothing_changes():
            answer = admin.post(f"/v1/policies/{never}/activate")
        is_refused(evidence, answer, 404, "not_found", "not found")


def test_nor_be_taken_from_the_member_who_has_it(house: House, evidence: Evidence, admin: httpx.Client) -> None:
    """An invited administrator is none yet: nobody could let her in again."""
    house.acme.admin.members.invite("second", roles=["tenant-admin"])
    me = admin.get("/v1/whoami").json()["principal"]
    with evidence.nothing_changes():
        answers = [
            admin.delete(f"/v1/members/{me}"),
            admin.patch(f"/v1/members/{me}", json={"roles": ["auditor"]}),
        ]
    for answer in answers:
        is_refused(evidence, answer, 409, "last_administrator")


def test_publication_at_once_over_http_makes_as_many_versions_and_one_active(
    house: House, evidence: Evidence, admin: httpx.Client
) -> None:
    before = publish(admin, "").json()["version"]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda number: publish(admin, f"// {number}"), range(6)))
    assert [answer.status_code for answer in answers] == [201] * 6
    versions = {answer.json()["version"]: answer for answer in answers}
    assert sorted(versions) == list(range(before + 1, before + 7))
    assert [one["version"] for one in admin.get("/v1/policies").json()["items"] if one["state"] == "active"] == [
        before + 6
    ]
    for version, answer in versions.items():
        (entry,) = evidence.entries(answer.headers["x-request-id"])
        assert (entry.tenant, entry.action, entry.outcome) == ("acme", "policy:publish", "done")
        assert entry.facts["version"] == version


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"actions": ["model:steal"]}, 422, "grant_refused"),
        ({"actions": ["model:delete"]}, 422, "grant_refused"),
        ({"actions": ["policy:publish"]}, 422, "grant_refused"),
        ({"actions": ["dataset:read"]}, 422, "grant_refused"),
        ({"actions": []}, 422, "grant_refused"),
        ({"kind": "policy"}, 422, "grant_refused"),
        ({"grantee": "acme"}, 422, "invalid_grantee"),
        ({"grantee": "platform"}, 422, "invalid_grantee"),
        ({"grantee": "*"}, 422, "invalid_grantee"),
        ({"name": "globex~model"}, 404, "not_found"),
        ({"expires_at": 1}, 422, "grant_refused"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_no_grant_gives_more_than_can_be_granted_over_http(
    evidence: Evidence, admin: httpx.Client, change: dict[str, Any], status: int, code: str
) -> None:
    body = {"kind": "model", "name": "model", "grantee": "globex", "actions": ["model:read"], "expires_at": None}
    with evidence.nothing_changes():
        answer = admin.post("/v1/grants", json={**body, **change})
    is_refused(evidence, answer, status, code, "not found" if status == 404 else "")
