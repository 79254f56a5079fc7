"""SIGKILL of the server at each durable write: afterwards the old or the new state is there, never half of one."""

import pytest

import modelkeep
from faults.harness import LOG, World, sweep
from modelkeep import Client, ClientCredentials
from modelkeep._core import safetensors
from modelkeep.errors import APIError, AuthenticationError, ModelkeepError, NotFoundError
from services.house import GRAPH, PASSWORD, PRIVATE, ROWS, SCHEMA, WEIGHTS, wait_until

pytestmark = pytest.mark.e2e


def known(client: Client, name: str) -> bool:
    try:
        client.models.get(name)
    except NotFoundError:
        return False
    return True


def test_a_model_upload_is_there_with_every_byte_or_not_at_all(world: World) -> None:
    for death in sweep(world, lambda n: world.once.models.upload(f"m{n}", graph=GRAPH, weights=WEIGHTS), step=4):
        name = f"m{death.n}"
        there = known(world.app, name)
        assert there or not death.answered, death
        if not there:
            # Nothing in its way: the same name again.
            world.app.models.upload(name, graph=GRAPH, weights=WEIGHTS)
        assert world.app.models.download(name).weights == WEIGHTS


def test_a_dataset_comes_with_its_budget_or_not_at_all(world: World) -> None:
    def act(n: int) -> None:
        world.once.datasets.upload_csv(f"d{n}", ROWS, schema=SCHEMA, privacy=PRIVATE)

    for death in sweep(world, act, step=4):
        name = f"d{death.n}"
        there = name in [dataset.name for dataset in world.app.datasets.list() if dataset.state == "ready"]
        assert there or not death.answered, death
        if not there:
            with pytest.raises(NotFoundError):
                world.app.budgets.get(name)
            for upload_id in [row[0] for row in world.sql("SELECT id FROM uploads WHERE state = 'open'")]:
                world.app.uploads.abort(upload_id)
            world.app.datasets.upload_csv(name, ROWS, schema=SCHEMA, privacy=PRIVATE)
        assert world.app.budgets.get(name).epsilon_spent == 0


def test_a_deleted_model_is_gone_or_whole_and_its_bytes_do_not_stay(world: World) -> None:
    def prepare(n: int) -> None:
        world.app.models.upload(f"gone{n}", graph=GRAPH, weights=WEIGHTS)

    for death in sweep(world, lambda n: world.once.models.delete(f"gone{n}"), prepare=prepare):
        wait_until(lambda: not world.without_key(), "the bytes of deleted objects to go")
        if known(world.app, f"gone{death.n}"):
            assert not death.answered, death
            assert world.app.models.download(f"gone{death.n}").weights == WEIGHTS


def test_a_deleted_version_is_gone_or_whole_and_the_others_stay(world: World) -> None:
    other = safetensors.write(
        {"w": [[5.0, 6.0], [7.0, 8.0]], "b": [1.5, -1.5]}, dtypes={"w": "float32", "b": "float32"}
    )
    world.app.models.upload("versions", graph=GRAPH, weights=WEIGHTS)
    model_id = world.app.models.get("versions").id
    number: dict[int, int] = {}

    def prepare(n: int) -> None:
        number[n] = world.app.models.upload("versions", graph=GRAPH, weights=other).version
        world.app.models.set_alias("versions", f"a{n}", version=number[n])

    def act(n: int) -> None:
        world.once.models.delete("versions", version=number[n])

    for death in sweep(world, act, prepare=prepare):
        gone = number[death.n]
        there = gone in [one.version for one in world.app.models.versions("versions")]
        assert not (there and death.answered), death
        # An alias goes with its version, in the same transaction.
        assert (f"a{death.n}" in world.app.models.get("versions").aliases) == there, death
        if there:
            assert world.app.models.download("versions", gone).weights == other
        else:
            with pytest.raises(NotFoundError):
                world.app.models.download("versions", gone)
            wait_until(lambda gone=gone: not world.bytes_of(model_id, gone), "its bytes to go")
        assert world.app.models.download("versions", 1).weights == WEIGHTS


def test_a_deleted_dataset_is_gone_or_whole(world: World) -> None:
    def prepare(n: int) -> None:
        world.app.datasets.upload_csv(f"gone{n}", ROWS, schema=SCHEMA, privacy=PRIVATE)

    for death in sweep(world, lambda n: world.acme.admin.datasets.delete(f"gone{n}"), prepare=prepare):
        there = f"gone{death.n}" in [dataset.name for dataset in world.app.datasets.list()]
        assert not (there and death.answered), death
        if there:
            assert world.app.budgets.get(f"gone{death.n}").epsilon_spent == 0


def test_a_grant_holds_from_its_answer_to_its_end(world: World) -> None:
    admin, other = world.acme.admin, world.globex.clients["developer"]

    def allowed() -> bool:
        try:
            return other.models.get("acme~model").latest_version == 1
        except ModelkeepError:
            return False

    def clear() -> None:
        for grant in admin.grants.list():
            admin.grants.revoke(grant.id)

    def grant(_n: int) -> None:
        admin.grants.create("model", "model", grantee="globex", actions=["model:read"])

    for death in sweep(world, grant, prepare=lambda _n: clear()):
        active = admin.grants.list()
        assert allowed() == bool(active), death
        assert active or not death.answered, death

    clear()

    def revoke(_n: int) -> None:
        admin.grants.revoke(admin.grants.list()[0].id)

    def prepare(_n: int) -> None:
        clear()
        grant(0)

    for death in sweep(world, revoke, prepare=prepare):
        active = admin.grants.list()
        assert allowed() == bool(active), death
        assert not (active and death.answered), death


def test_a_policy_is_active_whole_or_not(world: World) -> None:
    # The other tenant is governed: what every death is followed by reads a model of Acme's.
    admin, analyst = world.globex.admin, world.globex.clients["analyst"]
    text = '@id("no{}") forbid(principal, action == Modelkeep::Action::"model:read", resource);'

    def active() -> int:
        (found,) = [one.version for one in admin.policies.list() if one.state == "active"]
        return int(found)

    def refused() -> bool:
        try:
            analyst.models.get("model")
        except ModelkeepError:
            return True
        return False

    first = active()
    world.globex.clients["developer"].models.upload("model", graph=GRAPH, weights=WEIGHTS)
    for death in sweep(
        world,
        lambda n: admin.policies.publish(text.format(n)),
        prepare=lambda _n: admin.policies.activate(first),
        step=3,
    ):
        assert refused() == (active() != first), death
        assert active() != first or not death.answered, death
    second = active()
    for death in sweep(
        world, lambda _n: admin.policies.activate(first), prepare=lambda _n: admin.policies.activate(second), step=3
    ):
        assert refused() == (active() == second), death
        assert active() == first or not death.answered, death


def test_a_tenant_is_made_whole_and_an_enrolment_is_used_once(world: World) -> None:
    with world.made.operator() as operator:

        def create(n: int) -> None:
            operator.tenants.create(f"t{n}", name="T")

        for death in sweep(world, create, step=3):
            there = f"t{death.n}" in [tenant.slug for tenant in operator.tenants.list()]
            assert there or not death.answered, death
            if there:
                link = operator.tenants.new_enrolment_link(f"t{death.n}")
                modelkeep.enrol(world.made.url, link.token, username=f"t{death.n}-admin", password=PASSWORD)
            else:
                operator.tenants.create(f"t{death.n}", name="T")

        links: dict[int, str] = {}

        def prepare(n: int) -> None:
            links[n] = operator.tenants.create(f"e{n}", name="E").enrolment.token

        def enrol(n: int) -> None:
            modelkeep.enrol(world.made.url, links[n], username=f"e{n}-admin", password=PASSWORD)

        for death in sweep(world, enrol, prepare=prepare):
            used = f"e{death.n}-admin" in str(world.sql("SELECT * FROM issuer_users"))
            assert used or not death.answered, death
            if used:
                with pytest.raises(APIError):
                    enrol(death.n)
            else:
                enrol(death.n)


def test_an_invitation_is_there_or_can_be_made_again(world: World) -> None:
    admin = world.acme.admin
    for death in sweep(world, lambda n: admin.members.invite(f"person{n}", roles=["analyst"])):
        there = f"person{death.n}" in str(admin.members.list())
        assert there or not death.answered, death
        if not there:
            assert admin.members.invite(f"person{death.n}", roles=["analyst"]).invitation.token
            assert f"person{death.n}" in str(admin.members.list())


def test_a_rotated_secret_is_the_old_or_the_new_one(world: World) -> None:
    admin = world.acme.admin
    made = admin.service_accounts.create("spare", roles=["developer"])
    account, secret = made.service_account, [made.client_secret]

    def works(candidate: str, n: int, which: str) -> bool:
        with world.made.client(ClientCredentials(account.client_id, candidate), f"{which}{n}") as client:
            try:
                client.models.get("model")
            except AuthenticationError:
                return False
            return True

    def rotate(_n: int) -> None:
        secret.append(admin.service_accounts.rotate(account.id).client_secret)

    for death in sweep(world, rotate):
        old = works(secret[-2] if death.answered else secret[-1], death.n, "old")
        if death.answered:
            assert not old
            assert works(secret[-1], death.n, "new")
        elif not old:
            # It was changed, and nobody heard the new one: rotate again.
            rotate(death.n)
            assert works(secret[-1], death.n, "new")


def test_the_log_is_integrated_whole_or_not(world: World) -> None:
    def act(n: int) -> None:
        world.app.models.set_alias("model", f"a{n}", version=1)
        world.wait_integrated()

    for death in sweep(world, act, victim=LOG):
        world.verify_log()
        # The log's writes come after the change: what was answered is there, and what is there can be made again.
        aliases = world.app.models.get("model").aliases
        assert aliases.get(f"a{death.n}", 1) == 1
        assert f"a{death.n}" in aliases or not death.answered, death
