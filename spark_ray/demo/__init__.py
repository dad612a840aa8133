"""The demo: the whole loop, offline, on clips that the program draws and speaks itself."""
