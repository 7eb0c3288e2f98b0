package testcluster

import "fmt"

// clean returns an error while proxies have blocks that the bucket lacks.
func clean(proxies ...*Proxy) error {
	for _, p := range proxies {
		if n := p.Stats().Disk.DirtyBlocks; n > 0 {
			return fmt.Errorf("proxy %s has %d dirty blocks", p.Addr, n)
		}
	}
	return nil
}
