"""Starting and watching ranks."""
