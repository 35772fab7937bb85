"""Choose the settings of stores that travel from a command to every process that works for it on a cluster.

They stand in Ray's metadata, where everybody reads them who may ask the cluster. So no secret travels: keys
come from each node's own environment, files or role.
"""

import re
from collections.abc import Mapping

from wordsworth.pipeline.cluster.env_file import ENV_FILE
from wordsworth.pipeline.errors import UserError

# Environment variables that say which store is asked, and how. None of them is a secret.
TRAVELLING = (
    "AWS_CA_BUNDLE",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_PROFILE",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
    "AWS_USE_DUALSTACK_ENDPOINT",
    "AWS_USE_FIPS_ENDPOINT",
    "AZURE_AUTHORITY_HOST",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "GOOGLE_CLOUD_PROJECT",
    "GOOGLE_CLOUD_UNIVERSE_DOMAIN",
    "HF_ENDPOINT",
    "STORAGE_EMULATOR_HOST",
    ENV_FILE,  # the name of a file of keys, which every node has
)
OF_THIS_MACHINE = ("AWS_CA_BUNDLE", "AWS_PROFILE", ENV_FILE)  # names of files, and of what stands in them
_USER = re.compile(r"://[^/\s?#]*@")  # user or password in an address
_QUERY = re.compile(r"://[^\s]*\?")  # a signature may stand there


def travelling_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that travel, of those that are set.

    Raises:
        UserError: one of them holds what gives access.
    """
    settings = {name: environment[name] for name in TRAVELLING if environment.get(name)}
    for name, value in settings.items():
        if _USER.search(value) or _QUERY.search(value):
            raise UserError(
                f"{name} holds a user, a password or a signature, which every process of the cluster would "
                "show: take it out, and give credentials by the nodes' own environment or files"
            )
    return settings


def submitted_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that travel with a job to machines of another kind.

    Raises:
        UserError: as `travelling_settings`.
    """
    settings = travelling_settings(environment)
    return {name: value for name, value in settings.items() if name not in OF_THIS_MACHINE}
