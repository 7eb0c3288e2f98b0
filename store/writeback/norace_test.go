//go:build !race

package writeback

const sparse = 1
