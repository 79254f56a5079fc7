"""The identity and tenants rooms over a real database, with the ports of `core` faked; and a forger of tokens."""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from joserfc.jwk import ECKey, OKPKey, RSAKey

from fakes.core import FakeAuthorizer, FakeClock, FakeEntropy, FakeLimits, FakeRecorder, FakeSealer, operator_caller
from modelkeep_platform.core.callers import Caller, OperatorCaller, Role, TenantCaller
from modelkeep_platform.core.ids import ObjectId, RequestId, TenantId
from modelkeep_platform.core.secrets import SecretBytes
from modelkeep_platform.identity.authenticate import Authenticator
from modelkeep_platform.identity.guesses import GuessLimit
from modelkeep_platform.identity.issuer import EmbeddedIssuer, OAuthError, TokenAnswer, new_operator
from modelkeep_platform.identity.links import Links
from modelkeep_platform.identity.members import MemberService
from modelkeep_platform.identity.memberships import Memberships
from modelkeep_platform.identity.registry import Tenant, TenantRegistry
from modelkeep_platform.identity.service_accounts import ServiceAccountSecret, ServiceAccountService
from modelkeep_platform.storage.database import Database
from modelkeep_platform.storage.transactions import PlatformTransaction, System, TenantTransaction
from modelkeep_platform.tenants.service import Enrolled, TenantService

BASE = "https://keep.test"
ISSUER = f"{BASE}/issuer"
PASSWORD = "correct horse battery"
REQUEST = RequestId("req-1")
NOW = 1_800_000_000
LOOKING = System(reason="look at what the test made")
CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "aud": "modelkeep",
    "sub": "usr_1",
    "azp": "modelkeep-sdk",
    "typ": "Bearer",
    "organization": {"acme": {"id": "aaaaaaaa-0000-4000-8000-000000000001"}},
    "jti": "tok_1",
    "iat": NOW - 10,
    "nbf": NOW - 10,
    "exp": NOW + 290,
}


def b64(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


class FakeSecretStore:
    """Keeps secrets in memory; another issuer over the same store stands for a restart."""

    def __init__(self) -> None:
        self.kept: dict[str, SecretBytes] = {}

    def get_or_create(self, name: str, make: Callable[[], bytes]) -> SecretBytes:
        return self.kept.setdefault(name, SecretBytes(make()))

    def change(self, name: str, change: Callable[[SecretBytes], SecretBytes]) -> SecretBytes:
        self.kept[name] = change(self.kept[name])
        return self.kept[name]


class DatabaseEpoch:
    """The epoch read from the database on every question: what no transaction bumped did not change."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.refreshed = 0

    def current(self) -> int:
        return self._database.epoch()

    def last_known(self) -> int:
        return self._database.epoch()

    def refresh(self) -> None:
        self.refreshed += 1


class FakePolicies:
    """Remembers for whom a first policy was installed; `broken` makes that fail."""

    def __init__(self) -> None:
        self.installed: list[TenantId] = []
        self.broken = False

    def install_default(self, tx: PlatformTransaction | TenantTransaction, tenant: TenantId) -> None:
        if self.broken:
            raise RuntimeError("no policy")
        self.installed.append(tenant)


class IdentityRoom:
    """Everything about who is who, wired as the composition root wires it."""

    def __init__(self, database: Database, clock: FakeClock, recorder: FakeRecorder) -> None:
        self.database, self.clock, self.recorder = database, clock, recorder
        self.entropy, self.sealer, self.policies = FakeEntropy(11), FakeSealer(), FakePolicies()
        self.authorizer, self.epoch, self.store = FakeAuthorizer(), DatabaseEpoch(database), FakeSecretStore()
        self.registry = TenantRegistry(database=database)
        self.memberships = Memberships(issuer=ISSUER)
        self.links = Links(database=database, clock=clock, base_url=BASE)
        self.guesses = GuessLimit(database=database, clock=clock)
        self.issuer = self.new_issuer()
        self.authenticator = self.new_authenticator()
        self.limits = FakeLimits()
        self.members = MemberService(
            limits=self.limits,
            database=database,
            memberships=self.memberships,
            links=self.links,
            authorizer=self.authorizer,
            recorder=recorder,
            epoch=self.epoch,
            clock=clock,
            entropy=self.entropy,
        )
        self.accounts = ServiceAccountService(
            limits=self.limits,
            database=database,
            memberships=self.memberships,
            authorizer=self.authorizer,
            recorder=recorder,
            epoch=self.epoch,
            clock=clock,
            entropy=self.entropy,
        )
        self.tenants = TenantService(
            database=database,
            registry=self.registry,
            memberships=self.memberships,
            links=self.links,
            sealer=self.sealer,
            policies=self.policies,
            audit_key=ObjectId("audit"),
            authorizer=self.authorizer,
            recorder=recorder,
            epoch=self.epoch,
            clock=clock,
            entropy=self.entropy,
        )

    def new_issuer(self) -> EmbeddedIssuer:
        return EmbeddedIssuer(
            database=self.database,
            secret_store=self.store,
            issuer=ISSUER,
            registry=self.registry,
            memberships=self.memberships,
            guesses=self.guesses,
            clock=self.clock,
            entropy=self.entropy,
            epoch=self.epoch,
        )

    def new_authenticator(self) -> Authenticator:
        return Authenticator(
            database=self.database,
            keys=self.issuer,
            issuer=ISSUER,
            registry=self.registry,
            memberships=self.memberships,
            epoch=self.epoch,
            clock=self.clock,
        )

    # --- what people do ---------------------------------------------------------------------------

    def tenant(self, slug: str = "acme") -> tuple[Tenant, str]:
        """Add a tenant; return it and the token of its enrolment link."""
        made = self.tenants.create(operator_caller(), slug, slug.title())
        return made.tenant, made.enrolment.token

    def enrolled(self, slug: str = "acme", username: str = "ada") -> tuple[TenantCaller, Enrolled]:
        """Add a tenant and enrol its administrator; return her as a caller."""
        tenant, token = self.tenant(slug)
        enrolled = self.tenants.enrol(token, username, PASSWORD)
        return self.person(tenant, enrolled, Role.TENANT_ADMIN), enrolled

    def person(self, tenant: Tenant, enrolled: Enrolled, *roles: Role) -> TenantCaller:
        with self.database.tenant(tenant.id, by=LOOKING, read_only=True) as tx:
            found = self.memberships.find(tx, enrolled.principal)
        assert found is not None
        return TenantCaller(
            tenant=tenant.id,
            principal=found.subject,
            principal_kind=found.kind,
            name=found.name,
            roles=frozenset(roles),
            token_id="tok",
            request_id=REQUEST,
        )

    def account(self, admin: TenantCaller, name: str = "app", *roles: Role) -> ServiceAccountSecret:
        return self.accounts.create(admin, name, frozenset(roles or (Role.DEVELOPER,)))

    def app_token(self, made: ServiceAccountSecret) -> str:
        return self.issuer.client_credentials(
            made.service_account.client_id, made.client_secret, source="10.0.0.1"
        ).access_token

    def log_in(self, slug: str = "acme", username: str = "ada", password: str = PASSWORD) -> TokenAnswer:
        """Log a person in by device code."""
        begun = self.issuer.authorize_device("modelkeep-sdk", f"organization:{slug}", source="10.0.0.1")
        self.issuer.approve_device(begun.user_code, username, password, source="10.0.0.2")
        return self.issuer.redeem_device(begun.device_code, "modelkeep-sdk")

    def operator_token(self) -> str:
        with self.database.platform() as tx:
            new_operator(tx, self.memberships, client_id="operator", secret="mko_secret", now=self.clock.now_s())
        return self.issuer.client_credentials("operator", "mko_secret", source="10.0.0.1").access_token

    def caller(self, token: str) -> Caller:
        return self.authenticator.authenticate(token, REQUEST)

    def tenant_caller(self, token: str) -> TenantCaller:
        caller = self.caller(token)
        assert isinstance(caller, TenantCaller)
        return caller

    def operator(self, token: str) -> OperatorCaller:
        caller = self.caller(token)
        assert isinstance(caller, OperatorCaller)
        return caller

    def forge(self, token: str, *, header: Mapping[str, Any] | None = None, **claims: Any) -> str:
        """Sign `token` again with the issuer's own key, with other claims; None takes one away."""
        jwk = json.loads(self.store.kept["issuer-keys"].reveal())[0]["jwk"]
        key = ECKey.import_key(jwk).private_key
        assert key is not None
        forger = Forger(kid=jwk["kid"], key=key)
        body = json.loads(unb64(token.split(".")[1])) | claims
        return forger.token(header=header, claims=body)


PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | Ed25519PrivateKey


@dataclass
class Forger:
    """Signs whatever it is told to: headers and payloads that a library would refuse to write."""

    kid: str = "key-1"
    key: PrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    alg: str = "ES256"

    @property
    def jwks(self) -> dict[str, Any]:
        return {"keys": [self.public()]}

    def public(self, **more: str) -> dict[str, Any]:
        kinds = {"ES256": ECKey, "RS256": RSAKey, "PS256": RSAKey, "Ed25519": OKPKey}
        key = kinds[self.alg].import_key(self.key.public_key(), {"kid": self.kid, **more})  # type: ignore[attr-defined]
        return dict(key.as_dict(private=False))

    def sign(self, message: bytes) -> bytes:
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            r, s = decode_dss_signature(self.key.sign(message, ec.ECDSA(SHA256())))
            return r.to_bytes(32, "big") + s.to_bytes(32, "big")
        if isinstance(self.key, rsa.RSAPrivateKey):
            if self.alg == "PS256":
                return self.key.sign(message, padding.PSS(padding.MGF1(SHA256()), 32), SHA256())
            return self.key.sign(message, padding.PKCS1v15(), SHA256())
        return self.key.sign(message)

    def raw(self, header: bytes, payload: bytes) -> str:
        """Sign exactly these bytes."""
        signed = f"{b64(header)}.{b64(payload)}"
        return f"{signed}.{b64(self.sign(signed.encode()))}"

    def token(self, *, header: Mapping[str, Any] | None = None, claims: Mapping[str, Any] | None = None) -> str:
        """Sign a token; None as a value takes the member away."""
        head = {"alg": self.alg, "typ": "JWT", "kid": self.kid, **(header or {})}
        body = CLAIMS if claims is None else claims
        return self.raw(_json(head), _json(body))


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps({name: inner for name, inner in value.items() if inner is not None}).encode()


def code_of(refused: Callable[[], object]) -> str:
    """Return the OAuth error of a refusal."""
    try:
        refused()
    except OAuthError as exc:
        return exc.error_code
    raise AssertionError("it was not refused")


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
