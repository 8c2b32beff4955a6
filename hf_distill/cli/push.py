"""``hf-distill push``."""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_distill.cli.base import EXIT_CODES, Parser, Say, complain

HELP = "publish a finished student with its card"
DESCRIPTION = "Publish a finished student's folder on the Hugging Face Hub, in one commit."
EPILOG = f"""examples:
  hf-distill push runs/movie-reviews/final --repo me/movie-reviews-student --dry-run
  hf-distill push runs/movie-reviews/final --repo me/movie-reviews-student
  hf-distill push runs/movie-reviews/final --repo me/movie-reviews-student --private --revision v1
  hf-distill push runs/movie-reviews/final --repo me/movie-reviews-student --create-pr
  hf-distill push runs/movie-reviews/final --repo me/movie-reviews-student \\
      --collection "Students of movie reviews"

The token is that of `hf auth login`, or the variable HF_TOKEN. Uploaded are the student, its card,
plots, report and recipe; --dry-run lists the files. An interrupted push resumes with the same
command.

{EXIT_CODES}"""


def add_arguments(command: Parser) -> None:
    """Add the arguments."""
    add = command.add_argument
    add("folder", metavar="DIR", help="a student's folder, such as final/ of `train`")
    add("--repo", required=True, metavar="ID", help="namespace/name")
    add("--private", action="store_const", const=True, help="visibility of a new repository")
    where = command.add_mutually_exclusive_group()
    where.add_argument("--revision", metavar="BRANCH", help="branch; created if it is missing")
    where.add_argument("--create-pr", action="store_true", help="open a pull request against main")
    add("--message", metavar="TEXT", help="first line of the commit")
    add("--collection", metavar="TITLE", help="add it to this collection (title or slug)")
    add("--dry-run", action="store_true", help="check and list the files, offline")


def run(args: argparse.Namespace, say: Say) -> int:
    """Push a folder, or list the files that would be pushed."""
    from hf_distill.hub.collection import push_to_collection
    from hf_distill.hub.push import check_request, push_folder

    try:
        if args.dry_run:
            check_request(args.repo, args.revision, args.create_pr)
            return _show(Path(args.folder), say)
        message = {"commit_message": args.message} if args.message else {}
        commit = push_folder(
            args.folder,
            args.repo,
            private=args.private,
            revision=args.revision,
            create_pr=args.create_pr,
            **message,
        )
        say(f"pushed: {commit.pr_url or commit.commit_url}")
        if args.collection:
            student = commit.repo_url.repo_id
            namespace = student.partition("/")[0]
            found = push_to_collection(
                [student], args.collection, namespace, private=bool(args.private)
            )
            say(f"in the collection: {found.url}")
    except (OSError, ValueError) as error:
        complain(str(error))
        return 2 if isinstance(error, FileNotFoundError | ValueError) else 1
    return 0


def _show(folder: Path, say: Say) -> int:
    from hf_distill.hub.files import folder_problems, published_files

    names = published_files(folder)
    sizes = [(folder / name).stat().st_size for name in names]
    for name, size in zip(names, sizes, strict=True):
        say(f"{size:>14,}  {name}")
    say(f"{sum(sizes):>14,}  bytes in {len(names)} files")
    problems = folder_problems(folder)
    for problem in problems:
        complain(problem)
    say(f"{len(problems) or 'no'} problems")
    return 2 if problems else 0
