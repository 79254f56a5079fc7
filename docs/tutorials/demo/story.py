"""The story, step by step. Each method is one step; `steps` gives their order."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import data
import networks
import numpy as np
import scan
import torch
from people import approve_device
from server import Platform
from stage import Stage

import modelkeep
import modelkeep.torch
from modelkeep import Client, ClientCredentials, DeviceCode
from modelkeep.errors import BudgetExceededError, ForbiddenError, InvalidRequestError, NotFoundError

ADMIN_PASSWORDS = {"acme-health": "correct horse battery staple", "globex": "seven small green lanterns"}
ANALYST_PASSWORD = "a quiet river under stars"  # noqa: S105 -- a fixture of the demo
POLICY = """@id("analysts-production-only")
forbid(principal, action == Modelkeep::Action::"model:predict", resource)
when { principal.roles.contains("analyst") && context.alias != "production" };
"""
BROKEN_POLICY = """permit(principal, action, resource)
when { principal.shoe_size > 44 };
"""


class Story:
    """Holds what one step leaves to the next.

    Args:
        stage: shows and checks.
        platform: the server.
        folder: where the demo's own files go.
    """

    def __init__(self, *, stage: Stage, platform: Platform, folder: Path) -> None:
        self.stage = stage
        self.platform = platform
        self._state = folder / "client-state"
        self._clients: list[Client] = []
        self._needles: dict[str, bytes] = {}
        self.names, self.features, self.classes = data.breast_cancer()
        self.training, self.testing = data.split(len(self.classes))

    def steps(self) -> list[tuple[str, Callable[[], None]]]:
        """Return titles and steps, in order."""
        return [
            ("Two organisations join, and the operator stays outside", self.join),
            ("An application uploads a model and predicts", self.upload_and_predict),
            ("Real data, with budgets and public bounds", self.datasets),
            ("Training under differential privacy", self.train),
            ("Nothing readable on disk", self.scan),
            ("Strangers, grants and policies", self.share),
            ("A budget that cannot be overspent", self.overspend),
            ("What happened can be proven, also after a crash", self.prove),
        ]

    def close(self) -> None:
        """Close every client."""
        for client in self._clients:
            client.close()

    def client(self, auth: Any, name: str) -> Client:  # noqa: ANN401 -- any of the SDK's ways to log in
        """Make a client that keeps its tokens and checkpoints in a folder of its own."""
        client = Client(self.platform.url, auth=auth, state_dir=self._state / name)
        self._clients.append(client)
        return client

    # 1 ----------------------------------------------------------------------------------------------

    def join(self) -> None:
        """Make the installation; add and enrol both tenants; make accounts; refuse the operator."""
        self.platform.init()
        self.platform.start()
        self.operator = self.client(ClientCredentials("operator", self.platform.operator_secret), "operator")
        self.admins: dict[str, Client] = {}
        self.apps: dict[str, Client] = {}
        for slug, password in ADMIN_PASSWORDS.items():
            self._enrol(slug, password)
        admin = self.admins["acme-health"]
        invitation = admin.members.invite("ana", roles=["analyst"]).invitation
        modelkeep.enrol(self.platform.url, invitation.token, username="ana", password=ANALYST_PASSWORD)
        self.analyst = self.device_client("ana", ANALYST_PASSWORD, "acme-health")
        who = self.analyst.whoami()
        self.stage.check("the analyst logged in by device code on the sign-in page", who.roles == ["analyst"])
        self.stage.refused("the operator listing Acme's models", self.operator.models.list, ForbiddenError)

    def _enrol(self, slug: str, password: str) -> None:
        created = self.operator.tenants.create(slug, name=slug.replace("-", " ").title())
        username = f"{slug}-admin"
        modelkeep.enrol(self.platform.url, created.enrolment.token, username=username, password=password)
        self.stage.refused(
            f"{slug}: the enrolment link a second time",
            lambda: modelkeep.enrol(self.platform.url, created.enrolment.token, username="eve", password=password),
            modelkeep.APIError,
        )
        admin = self.device_client(username, password, slug)
        account = admin.service_accounts.create("app", roles=["developer"])
        self.admins[slug] = admin
        self.apps[slug] = self.client(
            ClientCredentials(account.service_account.client_id, account.client_secret), f"{slug}-app"
        )
        self.stage.check(f"{slug}: administrator enrolled, service account made", self.apps[slug].whoami().tenant)

    def device_client(self, username: str, password: str, slug: str) -> Client:
        """Log a person in by device code."""

        def approve(prompt: Any) -> None:  # noqa: ANN401 -- the SDK's DevicePrompt
            approve_device(prompt, username=username, password=password)

        client = self.client(DeviceCode(prompt=approve, organization=slug), username)
        client.whoami()
        return client

    # 2 ----------------------------------------------------------------------------------------------

    def upload_and_predict(self) -> None:
        """Trace a model trained outside, upload it, predict, and compare with local torch."""
        app = self.apps["acme-health"]
        module = networks.two_layers().eval()
        traced = modelkeep.torch.trace(module, torch.zeros(1, 10))
        version = app.models.upload("two-layers", traced)
        self.stage.say(f"two-layers version {version.version}, {len(traced.weights)} bytes of weights")
        rows = np.random.default_rng(1).normal(size=(32, 10)).astype(np.float32)
        with torch.no_grad():
            local = module(torch.from_numpy(rows)).numpy()
        batch = np.asarray(app.predict("two-layers", rows))
        single = np.asarray(app.predict("two-layers", rows[0]))
        self.stage.check("a batch of 32 equals local torch to 1e-5", np.abs(batch - local).max() < 1e-5)
        self.stage.check("a single row equals local torch to 1e-5", np.abs(single.ravel() - local[0]).max() < 1e-5)
        answer = app.predict("two-layers", rows[:2].tolist())
        self.stage.check("lists in, lists out", isinstance(answer, list))
        weights = next(parameter for parameter in module.parameters() if parameter.ndim > 1)
        self._needles["weights of two-layers"] = weights.detach().numpy().tobytes()[:64]
        self.kept = self.admins["acme-health"].audit.verify()
        self.stage.say(f"Acme's administrator keeps a checkpoint of {self.kept.size} log entries")

    # 3 ----------------------------------------------------------------------------------------------

    def datasets(self) -> None:
        """Upload training parts as private and test parts as public datasets."""
        app = self.apps["acme-health"]
        train_csv = data.as_csv(self.names, self.features[self.training], self.classes[self.training])
        schema = data.schema(self.names)
        private = {
            "visibility": "private",
            "unit": "row",
            "n_public": 400,
            "budget": {"epsilon": 2.5, "delta": 1e-5},
        }
        public = {"visibility": "public", "reason": "the published test part of a public table"}
        app.datasets.upload_csv("breast-cancer", train_csv, schema=schema, privacy=private)
        test_csv = data.as_csv(self.names, self.features[self.testing], self.classes[self.testing])
        app.datasets.upload_csv("breast-cancer-test", test_csv, schema=schema, privacy=public)
        images, labels = data.digits()
        train, _ = data.split(len(labels))
        app.datasets.upload_arrays(
            "digits",
            {"images": images[train], "target": labels[train]},
            schema={"images": {"shape": [1, 8, 8], "min": 0, "max": 16}, "classes": [str(n) for n in range(10)]},
            privacy={"visibility": "private", "unit": "row", "n_public": 1300, "budget": {"epsilon": 4, "delta": 1e-5}},
        )
        line = train_csv.splitlines()[7]
        self._needles["a row of breast-cancer as text"] = line[:48]
        self._needles["a row of breast-cancer as numbers"] = self.features[self.training][6].tobytes()[:48]
        self._needles["an image of digits"] = images[train][3].tobytes()
        budget = app.budgets.get("breast-cancer")
        self.stage.check("the budget is 2.5 and nothing is spent", (budget.epsilon, budget.epsilon_spent) == (2.5, 0))
        bad = train_csv.replace(train_csv.splitlines()[3].split(b",")[0], b"9999", 1)
        error = self.stage.refused(
            "a row outside the declared bounds",
            lambda: app.datasets.upload_csv("bad", bad, schema=schema, privacy=private),
            InvalidRequestError,
        )
        self.stage.check("the error names row and column", getattr(error, "details", {}).get("row"))

    # 4 ----------------------------------------------------------------------------------------------

    def job(self, epsilon: float, *, steps: int = 100) -> dict[str, Any]:
        """Return the job that trains `tumour` at `epsilon`."""
        traced = modelkeep.torch.trace(networks.tumour(), torch.zeros(1, 30))
        return {
            "dataset": "breast-cancer",
            "into": "tumour",
            "model": {"graph": traced.graph},
            "loss": "cross_entropy",
            "optimizer": {"name": "momentum", "learning_rate": 0.5, "momentum": 0.9},
            "steps": steps,
            "sample_rate": 0.25,
            "privacy": {"epsilon": epsilon, "clip_norm": 0.5},
        }

    def train(self) -> None:
        """Plan and run two private jobs and a public one; compare the download with what is served."""
        app = self.apps["acme-health"]
        plan = app.jobs.plan(self.job(2.0))
        self.stage.say(f"plan: σ = {plan.noise_multiplier:.3f}, {plan.steps} steps, ε = {plan.epsilon:.4f}")
        self.stage.check("the plan fits the budget", plan.fits)
        self._run(self.job(2.0))
        test = self.features[self.testing].astype(np.float32)
        scores = np.asarray(app.predict("tumour", test))
        accuracy = float((scores.argmax(axis=1) == self.classes[self.testing]).mean())
        self.stage.check(
            f"tumour version 1: accuracy {accuracy:.3f} on the public part, at least 0.85", accuracy >= 0.85
        )
        spent = app.budgets.get("breast-cancer").epsilon_spent
        self.stage.check(f"ε charged: {spent:.4f}, at most 2", 0 < spent <= 2.0)
        self._train_digits(app)
        self._train_in_the_open(app)
        module = modelkeep.torch.load(self.admins["acme-health"].models.download("tumour", version=1))
        with torch.no_grad():
            local = module(torch.from_numpy(test)).numpy()
        self.stage.check("the downloaded model equals the served one to 1e-5", np.abs(local - scores).max() < 1e-5)

    def _train_digits(self, app: Client) -> None:
        images, labels = data.digits()
        _, testing = data.split(len(labels))
        traced = modelkeep.torch.trace(networks.digits(), torch.zeros(1, 1, 8, 8))
        self._run(
            {
                "dataset": "digits",
                "into": "digits",
                "model": {"graph": traced.graph},
                "loss": "cross_entropy",
                "optimizer": {"name": "sgd", "learning_rate": 1.0},
                "steps": 150,
                "sample_rate": 0.2,
                "privacy": {"epsilon": 3.0, "clip_norm": 1.0},
            }
        )
        scores = np.asarray(app.predict("digits", images[testing].astype(np.float32)))
        accuracy = float((scores.argmax(axis=1) == labels[testing]).mean())
        self.stage.check(f"digits version 1: accuracy {accuracy:.3f}, at least 0.70", accuracy >= 0.70)

    def _train_in_the_open(self, app: Client) -> None:
        job = {**self.job(1.0), "dataset": "breast-cancer-test", "into": "tumour-open", "privacy": None}
        self._run({**job, "optimizer": {"name": "adam", "learning_rate": 0.01}})
        self.stage.check(
            "an ordinary job ran on data declared public", app.models.get("tumour-open").latest_version == 1
        )

    def _run(self, spec: dict[str, Any]) -> Any:  # noqa: ANN401 -- the SDK's Job
        app = self.apps["acme-health"]
        job = app.jobs.create(spec)
        done = app.jobs.wait(job.id, progress=True)
        self.stage.check(f"job for {spec['into']}: {done.state}", done.state == "succeeded")
        return done

    # 5 ----------------------------------------------------------------------------------------------

    def scan(self) -> None:
        """Look for plaintext; show first that the same scan finds a planted one."""
        folders = [self.platform.data, self.platform.temporary]
        planted = self.platform.data / "planted.bin"
        planted.write_bytes(b"before" + self._needles["weights of two-layers"] + b"after")
        found = scan.find(folders, self._needles)
        planted.unlink()
        self.stage.check("the scan finds a planted plaintext", [path for _, path in found] == [planted])
        found = scan.find(folders, self._needles)
        self.stage.check(f"{len(self._needles)} known plaintexts are nowhere in data and temporary folders", not found)

    # 6 ----------------------------------------------------------------------------------------------

    def share(self) -> None:
        """Refuse strangers, grant and revoke, publish policies and roll back."""
        self._strangers()
        admin, globex = self.admins["acme-health"], self.apps["globex"]
        row = self.features[self.testing][:1].astype(np.float32)
        grant = admin.grants.create("model", "tumour", grantee="globex", actions=["model:predict"])
        self.stage.check(
            "granted: Globex predicts with acme-health~tumour", len(globex.predict("acme-health~tumour", row))
        )
        self.stage.refused(
            "Globex downloading what it may only predict with",
            lambda: globex.models.download("acme-health~tumour"),
            ForbiddenError,
        )
        admin.grants.revoke(grant.id)
        self.stage.refused(
            "revoked: the very next call", lambda: globex.predict("acme-health~tumour", row), NotFoundError
        )
        self._policies(row)

    def _strangers(self) -> None:
        globex = self.apps["globex"]
        row = self.features[:1].astype(np.float32)
        job = {**self.job(1.0), "into": "stolen"}
        attempts: dict[str, Callable[[str, str], object]] = {
            "read": lambda model, _: globex.models.get(model),
            "predict": lambda model, _: globex.predict(model, row),
            "train": lambda _, dataset: globex.jobs.create({**job, "dataset": dataset}),
            "download": lambda model, _: globex.models.download(model),
            "delete": lambda model, _: globex.models.delete(model),
        }
        for verb, attempt in attempts.items():
            foreign = _refusal(partial(attempt, "acme-health~tumour", "acme-health~breast-cancer"))
            missing = _refusal(partial(attempt, "acme-health~never", "acme-health~never"))
            self.stage.check(f"Globex to {verb} Acme's: to the byte what never existed gives", foreign == missing)
        self.refused_request = _last_request(lambda: globex.models.get("acme-health~tumour"))
        error = self.stage.refused(
            "Acme's analyst deleting a model", lambda: self.analyst.models.delete("tumour"), ForbiddenError
        )
        self.stage.check("the refusal carries the reason", getattr(error, "reasons", ()))

    def _policies(self, row: Any) -> None:  # noqa: ANN401 -- a numpy row
        admin = self.admins["acme-health"]
        before = next(item.version for item in admin.policies.list() if item.state == "active")
        self.stage.check("the analyst predicts before the policy", len(self.analyst.predict("tumour", row)))
        admin.policies.publish(POLICY)
        error = self.stage.refused(
            "policy published: the analyst's next prediction without the alias",
            lambda: self.analyst.predict("tumour", row),
            ForbiddenError,
        )
        named = "analysts-production-only" in str(getattr(error, "reasons", ""))
        self.stage.check("the reason names the policy", named)
        admin.models.set_alias("tumour", "production", version=1)
        allowed = self.analyst.predict("tumour", row, version="production")
        self.stage.check("with the alias `production` the analyst predicts", len(allowed))
        error = self.stage.refused(
            "a policy with an error", lambda: admin.policies.publish(BROKEN_POLICY), InvalidRequestError
        )
        place = getattr(error, "details", {}).get("errors", [{}])[0]
        self.stage.check(f"refused at line {place.get('line')}, column {place.get('column')}", place.get("line") == 2)
        admin.policies.activate(before)
        self.stage.check(
            "rolled back: the analyst predicts as before", len(self.analyst.predict("tumour", row, version="1"))
        )

    # 7 ----------------------------------------------------------------------------------------------

    def overspend(self) -> None:
        """Ask for too much; take what fits; kill it half-way."""
        app = self.apps["acme-health"]
        before = app.budgets.get("breast-cancer").epsilon_spent
        try:
            app.jobs.create(self.job(2.0))
        except BudgetExceededError as exc:
            largest = exc.largest_epsilon
        else:
            self.stage.check("a second job at ε = 2 is refused", holds=False)
            return
        self.stage.check(
            "a second job at ε = 2 is refused and nothing spent",
            app.budgets.get("breast-cancer").epsilon_spent == before,
        )
        if largest is None:
            raise RuntimeError("the error names no ε that fits")
        self.stage.say(f"the error names the largest ε of this shape that still fits: {largest}")
        job = app.jobs.create(self.job(largest))
        self.stage.check(f"a job at ε = {largest} is admitted", job.state in {"queued", "running"})
        while (now := app.jobs.get(job.id)).state in {"queued", "running"} and now.progress.step < 40:
            time.sleep(0.02)
        app.jobs.cancel(job.id)
        done = app.jobs.wait(job.id, check=False)
        budget = app.budgets.get("breast-cancer")
        self.stage.check(f"killed after step {done.progress.step} of {done.progress.steps}", done.state == "cancelled")
        self.stage.check(
            f"what it ran stays charged ({before:.4f} → {budget.epsilon_spent:.4f}), the rest returned",
            before < budget.epsilon_spent < budget.epsilon and budget.epsilon_reserved == 0,
        )
        self.spent = budget.epsilon_spent

    # 8 ----------------------------------------------------------------------------------------------

    def prove(self) -> None:
        """Verify the log, kill the server, restart it, and find everything there."""
        admin = self.admins["acme-health"]
        verified = admin.audit.verify()
        self.stage.check(
            f"the log of {verified.size} entries extends the checkpoint of {self.kept.size} kept before",
            verified.size > self.kept.size,
        )
        globex = self.admins["globex"]
        entry = globex.audit.wait_for(self.refused_request)
        globex.audit.verify_entry(entry)
        self.stage.check("the refused call is in Globex's log, and its inclusion is proven", entry.outcome == "denied")
        self.platform.kill()
        self.platform.start()
        self.stage.say("the server was killed with SIGKILL and started again")
        again = admin.audit.verify()
        self.stage.check("the log still extends every checkpoint kept", again.size >= verified.size)
        app = self.apps["acme-health"]
        self.stage.check("the budget is what it was", app.budgets.get("breast-cancer").epsilon_spent == self.spent)
        names = {model.name for model in app.models.list()}
        self.stage.check("every model is there", names >= {"two-layers", "tumour", "digits", "tumour-open"})
        row = self.features[self.testing][:1].astype(np.float32)
        self.stage.check("and predicts", len(app.predict("tumour", row)))


def _refusal(call: Callable[[], object]) -> tuple[object, ...]:
    """Return all that a refusal shows, request id aside."""
    try:
        call()
    except modelkeep.APIError as exc:
        return type(exc), exc.status, exc.code, exc.message, exc.details
    raise RuntimeError("the call was not refused")


def _last_request(call: Callable[[], object]) -> str:
    """Return the request id of a refused call."""
    try:
        call()
    except modelkeep.APIError as exc:
        return exc.request_id
    raise RuntimeError("the call was not refused")
