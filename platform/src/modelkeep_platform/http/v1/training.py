"""Datasets, budgets and jobs."""

import msgspec

from modelkeep_platform.core.actions import Action
from modelkeep_platform.core.limits import MAX_GRAPH_BYTES
from modelkeep_platform.datasets.service import DatasetService
from modelkeep_platform.http.routing import Call, Endpoint
from modelkeep_platform.http.v1.converting import show, show_page
from modelkeep_platform.http.wire import training as wire
from modelkeep_platform.http.wire.fields import ListOf
from modelkeep_platform.training.service import TrainingService


def endpoints(*, datasets: DatasetService, training: TrainingService) -> list[Endpoint]:
    """Return the endpoints of datasets, budgets and jobs."""
    return [*_dataset_endpoints(datasets), *_job_endpoints(training)]


def _dataset_endpoints(datasets: DatasetService) -> list[Endpoint]:
    def create(call: Call) -> wire.DatasetCreated:
        spec = msgspec.to_builtins(call.body)
        size_bytes, sha256 = spec.pop("size_bytes"), spec.pop("sha256")
        return show(datasets.create(call.tenant_caller, spec, size_bytes, sha256), wire.DatasetCreated)

    return [
        Endpoint(
            method="POST",
            path="/v1/datasets",
            guard=Action.DATASET_CREATE,
            handler=create,
            summary="Declare a dataset and create the upload of its bytes",
            body=wire.NewDataset,
            returns=wire.DatasetCreated,
            status=201,
        ),
        Endpoint(
            method="GET",
            path="/v1/datasets",
            guard=Action.DATASET_LIST,
            handler=lambda call: show_page(datasets.list(call.tenant_caller, call.page), wire.Dataset),
            summary="List datasets",
            returns=ListOf[wire.Dataset],
            query=("limit", "cursor"),
        ),
        Endpoint(
            method="GET",
            path="/v1/datasets/{name}",
            guard=Action.DATASET_READ,
            handler=lambda call: show(datasets.get(call.tenant_caller, call.path["name"]), wire.Dataset),
            summary="Show a dataset's declaration; its rows cannot be downloaded",
            returns=wire.Dataset,
        ),
        Endpoint(
            method="DELETE",
            path="/v1/datasets/{name}",
            guard=Action.DATASET_DELETE,
            handler=lambda call: datasets.delete(call.tenant_caller, call.path["name"]),
            summary="Delete a dataset; its key is destroyed, its ledger stays",
            status=204,
        ),
        Endpoint(
            method="GET",
            path="/v1/budgets",
            guard=Action.BUDGET_READ,
            handler=lambda call: show_page(datasets.budgets(call.tenant_caller, call.page), wire.Budget),
            summary="List the budgets of private datasets",
            returns=ListOf[wire.Budget],
            query=("limit", "cursor"),
        ),
        Endpoint(
            method="GET",
            path="/v1/budgets/{name}",
            guard=Action.BUDGET_READ,
            handler=lambda call: show(datasets.budget(call.tenant_caller, call.path["name"]), wire.Budget),
            summary="Show a dataset's budget and what was charged",
            returns=wire.Budget,
        ),
    ]


def _job_endpoints(training: TrainingService) -> list[Endpoint]:
    return [
        Endpoint(
            method="POST",
            path="/v1/job-plans",
            guard=Action.JOB_PLAN,
            handler=lambda call: show(training.plan(call.tenant_caller, msgspec.to_builtins(call.body)), wire.Plan),
            summary="Say what a job would cost and whether it fits; nothing is spent",
            body=wire.JobSpec,
            returns=wire.Plan,
            limit_bytes=MAX_GRAPH_BYTES,
        ),
        Endpoint(
            method="POST",
            path="/v1/jobs",
            guard=Action.JOB_CREATE,
            handler=lambda call: show(training.create(call.tenant_caller, msgspec.to_builtins(call.body)), wire.Job),
            summary="Start a training job; its cost is reserved first",
            body=wire.JobSpec,
            returns=wire.Job,
            status=201,
            limit_bytes=MAX_GRAPH_BYTES,
        ),
        Endpoint(
            method="GET",
            path="/v1/jobs",
            guard=Action.JOB_LIST,
            handler=lambda call: show_page(training.list(call.tenant_caller, call.page), wire.Job),
            summary="List jobs, newest first",
            returns=ListOf[wire.Job],
            query=("limit", "cursor"),
        ),
        Endpoint(
            method="GET",
            path="/v1/jobs/{id}",
            guard=Action.JOB_READ,
            handler=lambda call: show(training.get(call.tenant_caller, call.path["id"]), wire.Job),
            summary="Show a job and its progress",
            returns=wire.Job,
        ),
        Endpoint(
            method="POST",
            path="/v1/jobs/{id}/cancel",
            guard=Action.JOB_CANCEL,
            handler=lambda call: show(training.cancel(call.tenant_caller, call.path["id"]), wire.Job),
            summary="Cancel a job; what it ran stays charged",
            returns=wire.Job,
        ),
        Endpoint(
            method="GET",
            path="/v1/jobs/{id}/logs",
            guard=Action.JOB_READ,
            handler=lambda call: show_page(training.logs(call.tenant_caller, call.path["id"], call.page), wire.JobLine),
            summary="Read a job's log; it holds no data",
            returns=ListOf[wire.JobLine],
            query=("limit", "cursor"),
        ),
    ]
