"""Collections of related students on the Hub, each with the claim of its card."""

import re
from collections.abc import Iterable
from functools import partial

from huggingface_hub import Collection, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError

from hf_distill.hub.commits import explained, retry

from .push import check_request

LONGEST_NOTE, LONGEST_DESCRIPTION = 500, 150  # the Hub's limits, in characters


def push_to_collection(
    repo_ids: Iterable[str],
    title: str,
    namespace: str | None = None,
    *,
    description: str | None = None,
    private: bool = False,
    token: str | None = None,
) -> Collection:
    """Put published students into one collection, and return it.

    The collection is created when missing. A student stands in it once, with the first paragraph of
    its card as its note; doing this again brings the notes up to date.

    Args:
        repo_ids: Students on the Hub, ``namespace/name``.
        title: The collection's title, or the slug (``namespace/title-0a1b2c``) of one that exists.
        namespace: Owner of the collection; default: the account of the token.
        description: Of a collection that is created; at most 150 characters.
        private: Visibility of a collection that is created.
        token: Default: the token stored by ``hf auth login``, or the variable HF_TOKEN.

    Errors are those of `push_folder`, and ValueErrors for a malformed id or text.
    """
    ids = list(dict.fromkeys(repo_ids))
    for repo_id in ids:
        check_request(repo_id, None, False)
    if not ids or not title.strip() or len(description or "") > LONGEST_DESCRIPTION:
        raise ValueError(
            f"expected at least one student, a title, and a description of at most "
            f"{LONGEST_DESCRIPTION} characters, got {len(ids)} students, the title {title!r} and "
            f"{len(description or '')} characters"
        )
    api = HfApi(token=token)
    with explained(title):
        found = retry(_collection, api, title, namespace, description, private)
        for repo_id in ids:
            card = retry(partial(ModelCard.load, token=token), repo_id)
            found = retry(_add, api, found, repo_id, claim_of(card.text))
    return found


def claim_of(card: str) -> str | None:
    """The first paragraph of a card under its title, as plain text of at most 500 characters."""
    text = re.sub(r"(?s:<!--.*?-->)|^#.*$|^!?\[.*$", "", card, flags=re.MULTILINE)
    first = next((part for part in re.split(r"\n\s*\n", text) if part.strip()), "")
    plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", first)
    plain = " ".join(re.sub(r"[*`]|\\(?=\W)", "", plain).split())
    return plain if len(plain) <= LONGEST_NOTE else plain[: LONGEST_NOTE - 1] + "…"


def _collection(
    api: HfApi, title: str, namespace: str | None, description: str | None, private: bool
) -> Collection:
    if re.fullmatch(r"[\w.-]+/[\w.-]+", title):
        return api.get_collection(title)
    return api.create_collection(
        title, namespace=namespace, description=description, private=private, exists_ok=True
    )


def _add(api: HfApi, collection: Collection, repo_id: str, note: str | None) -> Collection:
    slug = collection.slug
    held = next((item for item in collection.items if item.item_id == repo_id), None)
    if held is None:
        try:
            return api.add_collection_item(slug, repo_id, "model", note=note)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:  # in it by now: an answer was lost
                raise
    elif note and held.note != note:
        api.update_collection_item(slug, held.item_object_id, note=note)
    return api.get_collection(slug)
