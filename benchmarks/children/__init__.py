"""What runs in a process of its own: one contestant, once; the front files of the folder above start it."""
