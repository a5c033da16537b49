"""Files and folders that hold arrays, local or remote, whatever the format of the model in them."""
