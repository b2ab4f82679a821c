"""Every figure the project quotes is printed by a command in this folder (`duplex bench NAME`)."""
