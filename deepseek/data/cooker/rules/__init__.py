"""The cooker's rules, one a file. A rule keeps a draft, changes its texts, or drops it with a reason."""
