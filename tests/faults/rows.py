# SPDX-License-Identifier: Apache-2.0
"""Which tests inject which of the 25 faults of docs/faults.md: python tests/faults/rows.py.

Prints the test ids, for scripts/test.sh --faults.
"""

FAULTS = "tests/faults"
KILL, CORRUPT, DISK = (f"{FAULTS}/test_{n}.py" for n in ("kill", "corruption", "disk_full"))
PEERS, RUNS, MOVES, PAIR, SOAK, NAN, SPIKE = (
    f"{FAULTS}/test_{n}.py"
    for n in ("peers", "runs", "moves", "two_processes", "soak", "nan", "spike")
)
RESUME, LOOP, STEP = (f"tests/train/test_{n}.py" for n in ("resume", "loop", "step"))
CHECKPOINT, SIGNALS, LOCK, CONFIG, SHARDING, METRICS = (
    f"tests/core/test_{n}.py"
    for n in ("checkpoint", "signals", "lock", "config", "sharding", "metrics")
)
FEED, RECORDS, ROWS_FILE, CORPUS = (
    "tests/data/test_feed.py",
    "tests/text/test_records.py",
    "tests/data/test_rows.py",
    "tests/corpus/test_stage.py",
)

ROWS = {
    1: [f"{RESUME}::test_three_kills_change_no_bit", SOAK],
    2: [f"{KILL}::test_killed_at_every_stage_of_a_save", SOAK],
    3: [f"{KILL}::test_killed_at_every_stage_of_a_save"],
    4: [
        f"{RESUME}::test_sigterm_loses_no_step",
        f"{RUNS}::test_a_second_launch_on_one_workdir_is_refused",
        f"{PAIR}::test_a_signal_to_one_process_stops_both_at_one_step",
    ],
    5: [SIGNALS, f"{RUNS}::test_interrupted_while_compiling"],
    6: [
        f"{CORRUPT}::test_every_file_matters",
        f"{CORRUPT}::test_a_lost_entry_or_step_directory",
        f"{RUNS}::test_strict_resumption_refuses_a_damaged_newest_step",
    ],
    7: [
        f"{CORRUPT}::test_thirty_random_damages",
        f"{RESUME}::test_a_flipped_byte_is_found_and_the_step_before_used",
    ],
    8: [f"{CHECKPOINT}::test_foreign_files_are_ignored_and_leftovers_removed"],
    9: [
        f"{CHECKPOINT}::test_never_a_silent_restart",
        f"{RUNS}::test_nothing_left_to_trust_is_no_reason_to_start_again",
    ],
    10: [f"{DISK}::test_a_full_disk", f"{DISK}::test_saving_goes_on_when_space_is_freed"],
    11: [
        f"{RUNS}::test_a_full_disk_for_metrics_and_logs",
        f"{METRICS}::test_a_full_disk_does_not_stop_training",
    ],
    12: [f"{RESUME}::test_an_unwritable_workdir_is_refused"],
    13: [f"{STEP}::test_non_finite_steps_change_nothing_and_are_counted", NAN],
    14: [f"{LOOP}::test_many_bad_steps_end_the_run_without_saving", NAN],
    15: [SPIKE],
    16: [
        f"{RECORDS}::test_a_corrupt_line_is_skipped_and_counted",
        f"{RECORDS}::test_too_many_corrupt_lines_stop_the_read",
        f"{RECORDS}::test_a_cut_or_damaged_archive_is_noticed",
        f"{CORPUS}::test_corrupt_records_are_counted_in_the_report",
    ],
    17: [
        f"{RESUME}::test_other_data_or_tokenizer_are_refused",
        f"{ROWS_FILE}::test_damage_is_noticed",
    ],
    18: [
        f"{RUNS}::test_data_that_do_not_last_are_refused_before_training",
        f"{FEED}::test_the_end_of_the_data",
    ],
    19: [
        f"{MOVES}::test_one_to_eight_devices_and_back",
        f"{RESUME}::test_resume_on_other_devices_sees_the_same_data",
    ],
    20: [
        f"{MOVES}::test_every_pair_of_places",
        f"{FEED}::test_host_slices_make_the_global_batch",
    ],
    21: [f"{SHARDING}::test_meshes_that_do_not_fit", f"{RESUME}::test_refusals"],
    22: [
        f"{RESUME}::test_other_data_or_tokenizer_are_refused",
        "tests/tokenizers/test_loading.py::test_a_changed_file_is_refused",
    ],
    23: [f"{CONFIG}::test_wrong_command_lines_exit_2", f"{CONFIG}::test_wrong_values_are_refused"],
    24: [PEERS, "tests/core/test_watchdog.py", "tests/core/test_supervise.py"],
    25: [
        LOCK,
        f"{RUNS}::test_a_jumping_clock_changes_nothing",
        f"{RUNS}::test_a_damaged_compile_cache_is_made_anew",
        f"{RUNS}::test_a_second_launch_on_one_workdir_is_refused",
    ],
}


def tests():
    """Return all ids once, those of this folder as the folder."""
    found = [name for names in ROWS.values() for name in names if not name.startswith(FAULTS)]
    return [FAULTS, *sorted(set(found))]


if __name__ == "__main__":
    print(*tests(), sep="\n")
