"""Say where a run's rows come from: model, versions, settings. Nothing that gives access is among them."""

import json
import platform
from typing import Any

from wordsworth.pipeline.cluster.package import package_version
from wordsworth.pipeline.errors import without_secrets
from wordsworth.pipeline.output.records import RunPlan
from wordsworth.pipeline.storage.schemes import without_credentials

MOST_CHARACTERS = 600  # of one setting
Facts = list[tuple[str, str]]


def model_facts(plan: RunPlan) -> Facts:
    """Return what tells one model from another."""
    facts = [("model", plan.model), ("fingerprint", plan.fingerprint)]
    if plan.revision:
        facts.append(("revision", plan.revision))
    if plan.commit:
        facts.append(("commit of the weights", plan.commit))
    resolved = plan.resolved
    return [
        *facts,
        ("device and precision", f"{resolved.device}, {resolved.precision}"),
        ("decoder", resolved.decoder),
        ("batch, unit", f"{resolved.batch_size} images, {resolved.unit_rows} rows"),
    ]


def version_facts(plan: RunPlan) -> Facts:
    """Return the versions of the run and of this page."""
    return [
        ("run", plan.run_id),
        ("made by", f"wordsworth {plan.package_version}, files of version {plan.schema_version}"),
        ("this page by", f"wordsworth {package_version()}, Python {platform.python_version()}"),
    ]


def setting_facts(plan: RunPlan) -> Facts:
    """Return every option that makes two commands the same run, by its name on the command line."""
    return [(name, _told(value)) for name, value in sorted(plan.asked.items()) if value not in (None, [])]


def _told(value: Any) -> str:
    """Return a setting as one line. A plan holds no secrets; an address loses what could be one."""
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        text = ", ".join(map(without_credentials, value))
    elif isinstance(value, str):
        text = without_credentials(value)
    elif isinstance(value, dict):
        text = ", ".join(f"{name} {one}" for name, one in value.items())
    else:
        text = json.dumps(value, ensure_ascii=False)
    text = without_secrets(text)
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"{text[:MOST_CHARACTERS]} … ({len(text):,} characters)"
