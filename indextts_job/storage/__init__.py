"""Files and runs by path or URL: local disks, object stores, patience with them."""
