"""The closed enum of actions, each `resource:verb`. Cedar's schema lists the same names."""

from enum import StrEnum


class Action(StrEnum):
    """Everything that policy can allow or deny."""

    TENANT_CREATE = "tenant:create"
    TENANT_LIST = "tenant:list"
    TENANT_SUSPEND = "tenant:suspend"
    TENANT_RESUME = "tenant:resume"
    TENANT_ENROL = "tenant:enrol"
    TENANT_LIMIT = "tenant:limit"
    TENANT_READ = "tenant:read"
    ISSUER_ROTATE = "issuer:rotate"

    MEMBER_LIST = "member:list"
    MEMBER_INVITE = "member:invite"
    MEMBER_UPDATE = "member:update"
    MEMBER_REMOVE = "member:remove"

    SERVICE_ACCOUNT_LIST = "service_account:list"
    SERVICE_ACCOUNT_CREATE = "service_account:create"
    SERVICE_ACCOUNT_ROTATE = "service_account:rotate"
    SERVICE_ACCOUNT_DELETE = "service_account:delete"

    UPLOAD_WRITE = "upload:write"

    MODEL_LIST = "model:list"
    MODEL_CREATE = "model:create"
    MODEL_READ = "model:read"
    MODEL_PREDICT = "model:predict"
    MODEL_EXPORT = "model:export"
    MODEL_ALIAS = "model:alias"
    MODEL_DELETE = "model:delete"

    DATASET_LIST = "dataset:list"
    DATASET_CREATE = "dataset:create"
    DATASET_READ = "dataset:read"
    DATASET_TRAIN = "dataset:train"
    DATASET_DELETE = "dataset:delete"

    JOB_LIST = "job:list"
    JOB_CREATE = "job:create"
    JOB_PLAN = "job:plan"
    JOB_READ = "job:read"
    JOB_CANCEL = "job:cancel"

    BUDGET_READ = "budget:read"

    GRANT_LIST = "grant:list"
    GRANT_CREATE = "grant:create"
    GRANT_REVOKE = "grant:revoke"

    POLICY_LIST = "policy:list"
    POLICY_READ = "policy:read"
    POLICY_PUBLISH = "policy:publish"
    POLICY_ACTIVATE = "policy:activate"

    AUDIT_READ = "audit:read"


GRANTABLE = frozenset(
    {Action.MODEL_READ, Action.MODEL_PREDICT, Action.MODEL_EXPORT, Action.DATASET_READ, Action.DATASET_TRAIN}
)
"""Actions that an owner may grant to another tenant."""

PLATFORM_ACTIONS = frozenset(
    {
        Action.TENANT_CREATE,
        Action.TENANT_LIST,
        Action.TENANT_SUSPEND,
        Action.TENANT_RESUME,
        Action.TENANT_ENROL,
        Action.TENANT_LIMIT,
        Action.ISSUER_ROTATE,
        Action.AUDIT_READ,
    }
)
"""Actions an operator may ask for; every other one is refused to operators before policy is asked."""
