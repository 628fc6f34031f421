// Package s5cmd pins the version of s5cmd that the matrix builds.
package s5cmd

import _ "github.com/peak/s5cmd/v2/command"
