"""Keep Google's client from looking for a long time for credentials that are not there.

Without a token it asks the metadata service of Google's machines. Elsewhere nobody answers there, and the
client tries again for half a minute, in every process, before it goes on without credentials.
"""

import http.client
import os
from typing import Any

from wordsworth.pipeline.errors import UserError

NO_METADATA = "NO_GCE_CHECK"  # variable that keeps Google's clients from asking the metadata service
FILE = "GOOGLE_APPLICATION_CREDENTIALS"  # variable with the name of a file of credentials
METADATA = "169.254.169.254"  # address of the metadata service; GCE_METADATA_HOST names another
ANSWER_S = 3.0  # for its answer; on Google's machines it comes within milliseconds


def prepare(options: dict[str, Any]) -> None:
    """Find out once in a process whether there is a metadata service, where the client would ask it.

    Args:
        options: of Google's client.

    Raises:
        UserError: the environment names a file of credentials that is not there. The client would go on
            without credentials.
    """
    if options.get("token") is not None:
        return
    file = os.environ.get(FILE)
    if file:
        if not os.path.isfile(file):
            raise UserError(f"{FILE} names {file}, which is not there: name another file, or unset it")
        return
    if NO_METADATA in os.environ or "GCE_METADATA_HOST" in os.environ:
        return
    os.environ[NO_METADATA] = "false" if _answers() else "true"


def _answers() -> bool:
    connection = http.client.HTTPConnection(METADATA, timeout=ANSWER_S)
    try:
        connection.request("GET", "/", headers={"Metadata-Flavor": "Google"})
        return connection.getresponse().headers.get("Metadata-Flavor") == "Google"
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
