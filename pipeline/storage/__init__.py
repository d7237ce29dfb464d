"""The only path to durability: disks and object stores behind one contract, and files that betray damage."""
