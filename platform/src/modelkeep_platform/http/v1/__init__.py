"""The endpoints of `/v1`, one file a resource; each translates and calls, nothing else."""

from functools import cache
from typing import Any

import msgspec
from starlette.responses import Response

from modelkeep_platform import __version__
from modelkeep_platform.access.grants import GrantService
from modelkeep_platform.access.policies import PolicyService
from modelkeep_platform.audit.service import AuditService
from modelkeep_platform.datasets.service import DatasetService
from modelkeep_platform.http import openapi
from modelkeep_platform.http.answers import encode
from modelkeep_platform.http.routing import Call, Endpoint, Public
from modelkeep_platform.http.v1 import governance, people
from modelkeep_platform.http.v1.models import endpoints as model_endpoints
from modelkeep_platform.http.v1.training import endpoints as training_endpoints
from modelkeep_platform.http.v1.uploads import endpoints as upload_endpoints
from modelkeep_platform.http.v2_operations import operations
from modelkeep_platform.identity.issuer_keys import IssuerKeys
from modelkeep_platform.identity.members import MemberService
from modelkeep_platform.identity.registry import TenantRegistry
from modelkeep_platform.identity.service_accounts import ServiceAccountService
from modelkeep_platform.models.admission import AdmissionService
from modelkeep_platform.models.service import ModelService
from modelkeep_platform.tenants.limits import TenantLimitService
from modelkeep_platform.tenants.service import TenantService
from modelkeep_platform.training.service import TrainingService
from modelkeep_platform.uploads.service import UploadService


def all_endpoints(
    *,
    tenants: TenantService,
    tenant_limits: TenantLimitService,
    issuer_keys: IssuerKeys,
    members: MemberService,
    service_accounts: ServiceAccountService,
    registry: TenantRegistry,
    models: ModelService,
    admission: AdmissionService,
    datasets: DatasetService,
    uploads: UploadService,
    training: TrainingService,
    grants: GrantService,
    policies: PolicyService,
    audit: AuditService,
    base_url: str,
) -> list[Endpoint]:
    """Return every endpoint of `/v1`, the OpenAPI document's own included."""
    found: list[Endpoint] = [
        *people.endpoints(
            tenants=tenants,
            tenant_limits=tenant_limits,
            issuer_keys=issuer_keys,
            members=members,
            service_accounts=service_accounts,
            registry=registry,
            base_url=base_url,
        ),
        *model_endpoints(models=models, admission=admission),
        *upload_endpoints(admission=admission, datasets=datasets, uploads=uploads),
        *training_endpoints(datasets=datasets, training=training),
        *governance.endpoints(grants=grants, policies=policies, audit=audit),
    ]

    @cache
    def described() -> bytes:
        return encode(openapi.document([*found, *operations()], version=__version__))

    def document(_call: Call) -> Response:
        return Response(described(), media_type="application/json")

    found.append(
        Endpoint(
            method="GET",
            path="/v1/openapi.json",
            guard=Public("the description of the API is no secret"),
            handler=document,
            summary="Describe the API as OpenAPI 3.1",
            returns=msgspec.Raw,
        )
    )
    return found


def description() -> dict[str, Any]:
    """Return the OpenAPI document of this version; needs no installation."""
    absent: Any = None
    endpoints = all_endpoints(
        tenants=absent,
        tenant_limits=absent,
        issuer_keys=absent,
        members=absent,
        service_accounts=absent,
        registry=absent,
        models=absent,
        admission=absent,
        datasets=absent,
        uploads=absent,
        training=absent,
        grants=absent,
        policies=absent,
        audit=absent,
        base_url="https://models.example",
    )
    return openapi.document([*endpoints, *operations()], version=__version__)
