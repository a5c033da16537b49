"""Models as files for other runtimes: one file a tower, and a report that says what was kept."""
