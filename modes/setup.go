package modes

import (
	"context"
	"fmt"
	"net/url"
	"slices"

	"flexfs/admin"
)

// localPlace is the code of the provider and region that admin has from the
// start for what is on this site.
const localPlace = "local"

// ensure returns the object that the filter finds, or makes one of fields.
func ensure[T admin.Object](ctx context.Context, c *admin.Client, filter map[string]string, fields map[string]any) (T, error) {
	query := url.Values{}
	for name, value := range filter {
		query.Set(name, value)
	}
	found, err := admin.List[T](ctx, c, query)
	if err != nil || len(found) > 0 {
		return slices.Concat(found, make([]T, 1))[0], err
	}
	return admin.Create[T](ctx, c, fields)
}

// setup makes the objects of a cluster that up runs, those that are not there
// yet, and writes the credentials of its programs.
func (u *Up) setup(ctx context.Context, c *admin.Client) error {
	want, err := parseBlockStore(u.state.BlockStore)
	if err != nil {
		return err
	}
	if u.state.BlockStore == "" {
		want.APICode, want.Bucket, want.RegionCode = "dir", u.file("bucket"), localPlace
	}
	if _, err := ensure[admin.Region](ctx, c, map[string]string{"providerCode": localPlace, "code": want.RegionCode},
		map[string]any{"providerCode": localPlace, "code": want.RegionCode}); err != nil {
		return err
	}
	blocks, err := ensure[admin.BlockStore](ctx, c, map[string]string{"bucket": want.Bucket, "prefix": want.Prefix}, map[string]any{
		"providerCode": localPlace, "regionCode": want.RegionCode, "apiCode": want.APICode, "bucket": want.Bucket, "prefix": want.Prefix,
		"username": want.Username, "password": want.Password, "address": want.Address,
	})
	if err != nil {
		return err
	}
	metaStores, err := admin.List[admin.MetaStore](ctx, c, nil)
	if err != nil || len(metaStores) == 0 {
		return fmt.Errorf("list of metadata services: %w", err)
	}
	volume, err := ensure[admin.Volume](ctx, c, map[string]string{"name": upVolume},
		map[string]any{"name": upVolume, "blockStoreID": blocks.ID, "metaStoreID": metaStores[0].ID})
	if err != nil {
		return err
	}
	for group := 1; group <= upGroups; group++ {
		if err := u.setupGroup(ctx, c, volume, group); err != nil {
			return err
		}
	}
	token, err := ensure[admin.VolumeToken](ctx, c, map[string]string{"volumeID": volume.ID}, map[string]any{"volumeID": volume.ID, "notes": "flexfs up"})
	if err != nil {
		return err
	}
	if token, err = admin.Get[admin.VolumeToken](ctx, c, fmt.Sprint(token.ID)); err != nil {
		return err
	}
	return u.credentials("mount.json", token.Token)
}

// setupGroup makes one proxy group and lets the volume use it.
func (u *Up) setupGroup(ctx context.Context, c *admin.Client, volume admin.Volume, group int) error {
	groups, err := admin.List[admin.ProxyGroup](ctx, c, nil)
	if err != nil {
		return err
	}
	members := u.members(group)
	var g admin.ProxyGroup
	if i := slices.IndexFunc(groups, func(g admin.ProxyGroup) bool { return slices.Contains(members, g.Addresses[0]) }); i >= 0 {
		g = groups[i]
	} else if g, err = admin.Create[admin.ProxyGroup](ctx, c, map[string]any{"providerCode": localPlace, "regionCode": localPlace, "addresses": members}); err != nil {
		return err
	}
	id := fmt.Sprint(g.ID)
	if _, err := ensure[admin.VolumeProxyGroup](ctx, c, map[string]string{"volumeID": volume.ID, "proxyGroupID": id},
		map[string]any{"volumeID": volume.ID, "proxyGroupID": g.ID}); err != nil {
		return err
	}
	if g, err = admin.Get[admin.ProxyGroup](ctx, c, id); err != nil {
		return err
	}
	return u.credentials(groupFile(group), g.Token)
}

func groupFile(group int) string { return fmt.Sprintf("proxy-group-%d.json", group) }

// credentials writes the credentials file of a program, with admin as in the
// operator's.
func (u *Up) credentials(name, token string) error {
	creds, err := ReadCredentials(u.file("admin", "credentials.json"))
	if err != nil {
		return err
	}
	creds.Token = token
	return creds.write(u.file(name))
}
