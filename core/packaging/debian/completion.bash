# Asks the binary itself, so that topics and groups are completed too.
source <(COMPLETE=bash millstream)
