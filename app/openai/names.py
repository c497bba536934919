"""Names of `model` in /v1: the served model, its versions as MODEL@vN, and OpenAI's names as aliases.

Knows the service's versions. Knows nothing of requests.
"""

from __future__ import annotations

import re
from datetime import datetime

from app.access.key_ring import Scope
from app.access.keys import Caller, may_name
from app.openai.schemas import ModelCard, ModelSampling
from app.service import Service
from codebook.live import ACTIVE
from core.errors import UnknownModel

ALIAS = re.compile(r"(gpt-image|chatgpt-image|dall-e)-[a-z0-9.-]{1,60}")
LISTED = ("gpt-image-1", "dall-e-3")  # clients look for such names in the list, or have one built in
AT = "@"


def version_of(service: Service, model: str | None) -> str:
    """Return the version that a name stands for, or "active". Raises UnknownModel."""
    served = service.engine.facts.title
    if model is None or model == served or (service.settings.openai_aliases and ALIAS.fullmatch(model)):
        return ACTIVE
    name, at, version = model.rpartition(AT)
    if at and name == served and version in (manifest.version for manifest in service.store.versions()):
        return version
    raise UnknownModel(f"the model {model!r} does not exist; GET /v1/models lists those that do")


def cards(service: Service, caller: Caller) -> list[ModelCard]:
    """Return the names that a caller may use; see app/access/keys.py on versions that are not active."""
    facts, active = service.engine.facts, service.live.active.version
    served, own = facts.title, facts.sampling(0)
    sampling = ModelSampling(guidance_scale=own.guidance, temperature=own.temperature, top_k=own.top_k, top_p=own.top_p)
    made = {m.version: int(datetime.fromisoformat(m.created).timestamp()) for m in service.store.versions()}
    names = [served, *(LISTED if service.settings.openai_aliases else ())]
    listed = [ModelCard(id=name, created=made.get(active, 0), codebook=ACTIVE, sampling=sampling) for name in names]
    return listed + [
        ModelCard(id=f"{served}{AT}{version}", created=when, codebook=version, sampling=sampling)
        for version, when in made.items()
        if may_name(service, caller, version)
    ]


def card(service: Service, caller: Caller, model: str) -> ModelCard:
    """Return the card of a name, listed or an alias. Raises UnknownModel."""
    version, listed = version_of(service, model), cards(service, caller)
    found = [each for each in listed if each.id == model or (version == ACTIVE == each.codebook)]
    if not found:
        raise UnknownModel(f"the model {model!r} takes a key with the scope {str(Scope.PUBLISH)!r}")
    return found[0].model_copy(update={"id": model})
