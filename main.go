// Command flexfs is a POSIX file system over object storage: its servers, its
// client and its tools, in one binary.
package main

import (
	"os"

	"flexfs/modes"
)

func main() { os.Exit(modes.Main(os.Args...)) }
