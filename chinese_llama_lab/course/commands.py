"""`chinese-llama-lab course` and `chinese-llama-lab notebooks`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands; each sets `handler`, a function of the arguments that returns an exit code."""
    course = subparsers.add_parser(
        "course", help="run the course, every notebook in order", description=_COURSE
    )
    course.add_argument("chapters", nargs="*", metavar="NN", help="only these chapters, such as 01")
    course.add_argument("--fresh", action="store_true", help="run again what is done and unchanged")
    course.add_argument("--output", type=Path, help="where copies and pages go (default: build/course)")
    course.add_argument("--cell-timeout", type=float, metavar="SECONDS", help="limit for one cell")
    course.set_defaults(handler=run_course_command)

    notebooks = subparsers.add_parser(
        "notebooks", help="make the notebooks from notebooks/source", description=_NOTEBOOKS
    )
    notebooks.add_argument("chapters", nargs="*", metavar="NN", help="only these chapters, such as 01")
    notebooks.add_argument("--check", action="store_true", help="only say which ones have drifted")
    notebooks.add_argument("--stale", action="store_true", help="build only those that have drifted")
    notebooks.add_argument(
        "--words", action="store_true", help="only take over new words; execute nothing, change no output"
    )
    notebooks.add_argument("--solutions", type=Path, metavar="FOLDER", help="write teachers' copies instead")
    notebooks.add_argument("--cell-timeout", type=float, metavar="SECONDS", help="limit for one cell")
    notebooks.set_defaults(handler=notebooks_command)


_COURSE = (
    "Runs each notebook in the profile that LAB_PROFILE names. What is done and unchanged is skipped. "
    "An executed copy and a web page of each are written under build/course, results under build/results."
)
_NOTEBOOKS = "Executes each source in the course profile and writes the notebook that is committed."


def run_course_command(arguments: argparse.Namespace) -> int:
    """Run the course; the first failing cell ends it with a `CourseError`."""
    from chinese_llama_lab.course.chapters import chapters, notebooks_dir, select
    from chinese_llama_lab.course.run import run_course
    from chinese_llama_lab.paths import build_dir
    from chinese_llama_lab.profiles import current_profile

    all_chapters = [chapter for chapter in chapters(notebooks_dir()) if chapter.notebook.is_file()]
    chosen = select(all_chapters, arguments.chapters)
    output = arguments.output or build_dir() / "course"
    profile = current_profile().name
    print(f"{len(chosen)} notebooks in profile {profile}; copies and pages in {output}", flush=True)
    runs = run_course(
        chosen,
        profile=profile,
        output=output,
        results=build_dir() / "results",
        fresh=arguments.fresh,
        cell_timeout=arguments.cell_timeout,
    )
    seconds, peak = sum(run.seconds for run in runs), max((run.peak_mib for run in runs), default=0.0)
    print(f"all done: {seconds / 60:.1f} min, {peak / 1024:.2f} GiB at most; open {output / 'index.html'}")
    return 0


def notebooks_command(arguments: argparse.Namespace) -> int:
    """Build, check, or write the teachers' copies."""
    from chinese_llama_lab.course.build import PROFILE, build, write_solutions
    from chinese_llama_lab.course.chapters import chapters, notebooks_dir, select
    from chinese_llama_lab.course.drift import drift
    from chinese_llama_lab.course.run import Progress
    from chinese_llama_lab.course.words import take_words
    from chinese_llama_lab.paths import committed_results_dir

    chosen = select(chapters(notebooks_dir()), arguments.chapters)
    if arguments.solutions:
        for chapter in chosen:
            print(write_solutions(chapter, arguments.solutions))
        return 0
    differing = {chapter.name: drift(chapter.source, chapter.notebook) for chapter in chosen}
    if arguments.check:
        for name, differences in differing.items():
            print(f"{name}: {'up to date' if not differences else differences[0]}")
            for difference in differences[1:]:
                print(f"{'':{len(name)}}  {difference}")
        return 1 if any(differing.values()) else 0
    if arguments.words:
        for chapter in chosen:
            print(f"{chapter.name}: {'new words' if take_words(chapter) else 'up to date'}")
        return 0
    for chapter in chosen:
        if arguments.stale and not differing[chapter.name]:
            print(f"{chapter.name}: up to date")
            continue
        progress = Progress(chapter.name)
        run = build(
            chapter,
            results=committed_results_dir(),
            profile=PROFILE,
            cell_timeout=arguments.cell_timeout,
            progress=progress.update,
        )
        progress.finish(run)
    return 0
