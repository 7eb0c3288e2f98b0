package admin

// Bootstrap makes a database without accounts ready for its operator: an
// account, and the providers and regions that need no thought. It returns the
// account, whose token the operator must be told, and whether it was made now;
// if it was not, it is the first account, without its token.
func (db *DB) Bootstrap() (account Account, made bool, err error) {
	err = db.update(func(tx *tx) error {
		err := tx.each(FindTable("accounts"), func(r record) error {
			if account.ID == 0 {
				account = *r.(*Account)
			}
			return nil
		})
		if err != nil || account.ID != 0 {
			return err
		}
		made = true
		account = Account{Name: "admin"}
		for _, r := range firstPlaces() {
			if err := tx.create(tableOf(r), r, 0); err != nil {
				return err
			}
		}
		return tx.create(FindTable("accounts"), &account, 0)
	})
	if err != nil {
		return Account{}, false, err
	}
	if !made {
		account.hide(true)
	}
	return account, made, nil
}

func tableOf(r record) *Table {
	switch r.(type) {
	case *Provider:
		return FindTable("providers")
	case *Region:
		return FindTable("regions")
	}
	return nil
}

// firstPlaces are AWS with its regions that every account may use, and this
// site.
func firstPlaces() []record {
	list := []record{
		&Provider{Code: "local", Name: "This site"},
		&Region{ProviderCode: "local", Code: "local", Name: "This site"},
		&Provider{Code: "aws", Name: "Amazon Web Services"},
	}
	for _, r := range []Region{
		{Code: "ap-northeast-1", Name: "Tokyo"},
		{Code: "ap-northeast-2", Name: "Seoul"},
		{Code: "ap-northeast-3", Name: "Osaka"},
		{Code: "ap-south-1", Name: "Mumbai"},
		{Code: "ap-southeast-1", Name: "Singapore"},
		{Code: "ap-southeast-2", Name: "Sydney"},
		{Code: "ca-central-1", Name: "Canada"},
		{Code: "eu-central-1", Name: "Frankfurt"},
		{Code: "eu-north-1", Name: "Stockholm"},
		{Code: "eu-west-1", Name: "Ireland"},
		{Code: "eu-west-2", Name: "London"},
		{Code: "eu-west-3", Name: "Paris"},
		{Code: "sa-east-1", Name: "Sao Paulo"},
		{Code: "us-east-1", Name: "N. Virginia"},
		{Code: "us-east-2", Name: "Ohio"},
		{Code: "us-west-1", Name: "N. California"},
		{Code: "us-west-2", Name: "Oregon"},
	} {
		list = append(list, &Region{ProviderCode: "aws", Code: r.Code, Name: r.Name})
	}
	return list
}
